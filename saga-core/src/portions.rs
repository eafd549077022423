//! What is sent or handed on in one go is bounded in bytes as well as in number.

/// Parts of so many bytes, about: each ends with the item that makes it heavy.
pub(crate) fn portions<T>(items: &[T], portion: usize, bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut bytes = 0;
    items.chunk_by(move |one, _| {
        bytes += bytes_of(one);
        let goes_on = bytes < portion;
        if !goes_on {
            bytes = 0;
        }
        goes_on
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_ends_with_what_makes_it_heavy() {
        let lengths = |bytes: &[usize]| portions(bytes, 100, |bytes| *bytes).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[0; 500]), [500]);
        assert_eq!(lengths(&[50, 50, 1, 200, 3]), [2, 2, 1]);
    }
}
