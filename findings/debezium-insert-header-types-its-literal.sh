#!/usr/bin/env bash
# Kafka Connect's transformation InsertHeader is given the literal "1.0" for the header `ce_specversion`. Its
# documentation calls the setting "the literal value that is to be set as the header value on all records". What it sets
# is not that text: it parses the literal first, and where a number comes out, the header's converter writes that
# number. SimpleHeaderConverter, the default, and StringConverter both write 1.0 as "1". No reader takes an event with
# `ce_specversion: 1` for a CloudEvent of version 1.0. So a set-up that adds the header in this way, as one would to
# Debezium's outbox event router, loses every event, and its configuration looks right. Quotation marks around the
# literal do not help: both converters write them into the header.
#
# What does help: a column of text with 1.0 in it, which the router places in the header as it is.
#
# The script runs the real class, alone, on a valid record, and prints what it sets. Its exit code is 0 as long as the
# behaviour is as described, 1 with any other. Needs a JDK from 17 on, and Maven, which fetches the packages.
set -euo pipefail

version=4.3.0 # of org.apache.kafka:connect-transforms, connect-runtime and their dependencies

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"

cat >pom.xml <<XML
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId>
  <artifactId>finding</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>connect-transforms</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId><version>$version</version></dependency>
  </dependencies>
</project>
XML
mvn -B -C org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory=lib >log 2>&1 </dev/null || { grep -F '[ERROR]' log >&2; exit 1; }

cat >Finding.java <<'JAVA'
import java.util.Map;
import org.apache.kafka.common.utils.AppInfoParser;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.source.SourceRecord;
import org.apache.kafka.connect.storage.HeaderConverter;
import org.apache.kafka.connect.storage.SimpleHeaderConverter;
import org.apache.kafka.connect.storage.StringConverter;
import org.apache.kafka.connect.transforms.InsertHeader;

public class Finding {
    public static void main(String[] arguments) throws Exception {
        System.out.println("Kafka Connect " + AppInfoParser.getVersion());
        for (String literal : new String[] {"1.0", "\"1.0\"", "v1.0"}) {
            InsertHeader<SourceRecord> insert = new InsertHeader<>();
            insert.configure(Map.of("header", "ce_specversion", "value.literal", literal));
            SourceRecord record = new SourceRecord(Map.of(), Map.of(), "topic", Schema.STRING_SCHEMA, "value");
            Header header = insert.apply(record).headers().lastWithName("ce_specversion");
            StringConverter string = new StringConverter();
            string.configure(Map.of("converter.type", "header"));
            System.out.println(literal + " becomes " + header.schema().type() + " " + header.value()
                + ", written as " + written(new SimpleHeaderConverter(), header) + " by SimpleHeaderConverter, as "
                + written(string, header) + " by StringConverter");
        }
    }

    static String written(HeaderConverter converter, Header header) throws Exception {
        return new String(converter.fromConnectHeader("topic", header.key(), header.schema(), header.value()), "UTF-8");
    }
}
JAVA
javac -cp 'lib/*' Finding.java
java -cp 'lib/*:.' Finding 2>err | tee seen || { cat err >&2; exit 1; }

cat >expected <<END
Kafka Connect $version
1.0 becomes INT8 1, written as 1 by SimpleHeaderConverter, as 1 by StringConverter
"1.0" becomes STRING "1.0", written as "1.0" by SimpleHeaderConverter, as "1.0" by StringConverter
v1.0 becomes STRING v1.0, written as v1.0 by SimpleHeaderConverter, as v1.0 by StringConverter
END
diff expected seen || { echo "InsertHeader behaves in another way now (expected: <, seen: >)." >&2; exit 1; }
