# Cleans up after a private Postgres when the process that started it is gone, however it went.
#
#   $1  the data directory
#   $2  "remove" if the data directory is to be removed, else "keep"
#
# Standard input is a pipe. Its other end lives in the owner and in nobody else, so it ends exactly when
# the owner does, by return, panic, Ctrl-C or SIGKILL. What the owner writes is "making" when it is about to
# spawn the process that makes the data directory, and then the number of that process. The server and initdb
# were put into this shell's own process group when they were spawned: group 0 below is "they and I", and nobody else.

data_dir=$1
trap '' HUP INT QUIT TERM

initdb=
while read -r line; do initdb=$line; done

# Whether initdb is at work.
making() {
    case $initdb in
        '') return 1 ;;
        making) in_group ;;
        *) kill -0 "$initdb" 2>/dev/null ;;
    esac
}

# Whether anybody else is in this group. Without /proc nobody knows. Starts no process: that would be one.
in_group() {
    [ -e /proc/self/stat ] || return 0
    for stat in /proc/[0-9]*/stat; do
        read -r line 2>/dev/null < "$stat" || continue
        # Behind the name of the program: its state, its parent, its group.
        set -- ${line##*) }
        [ "$3" = "$$" ] && [ "$1" != Z ] && [ "$stat" != "/proc/$$/stat" ] && return 0
    done
    return 1
}

# Whether the server has its lock file, or initdb is at work.
busy() {
    [ -e "$data_dir/postmaster.pid" ] || making
}

# Waits until the server has taken its lock file away and initdb has ended, at most $1 tenths of a second.
settle() {
    tenths=$1
    while busy && [ "$tenths" -gt 0 ]; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
}

kill -INT 0     # the server: fast shutdown; initdb: undo and end
sleep 0.2       # a server that was just starting may not have its lock file yet
settle 100
kill -QUIT 0    # the server: immediate shutdown
settle 50

if [ "$2" = remove ]; then
    tries=50
    until rm -rf "$data_dir" || [ "$tries" -eq 0 ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
fi

kill -KILL 0    # whatever is left of the group, this shell included
