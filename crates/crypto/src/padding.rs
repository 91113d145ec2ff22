//! Padding: lengths are rounded up, so that what a server sees says less. Padmé (Nikitin et al., 2019)
//! keeps as many leading bits of a length as the length has bits of bits: at most 12 % more bytes, and
//! O(log log n) bits of the length are seen. What it hides and what not stands in the threat model.

/// Whether lengths are padded; a vault may turn it off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Padding {
    /// Up to the next bucket.
    Bucket,
    /// Not at all.
    None,
}

/// What the plaintext of a file's last chunk is padded to with zeros, at the least.
pub const CHUNK_BYTES_MIN: usize = 256;

/// How long the plaintext of a chunk of `length` bytes becomes, in a file of slots of `class_bytes`.
pub fn padded_len(length: usize, class_bytes: usize) -> usize {
    bucket(length, CHUNK_BYTES_MIN).min(class_bytes).max(length)
}

/// The bucket of `length`, at least `length_min`.
pub(crate) fn bucket(length: usize, length_min: usize) -> usize {
    padme(length).max(length_min)
}

fn padme(length: usize) -> usize {
    let Some(exponent) = length.checked_ilog2() else { return 0 };
    let Some(kept) = exponent.checked_ilog2() else { return length };
    let mask = (1 << (exponent - kept - 1)) - 1;
    length.checked_add(mask).map_or(length, |rounded| rounded & !mask)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lengths_fall_into_few_buckets() {
        for (length, expected) in [
            (0, 256),
            (1, 256),
            (256, 256),
            (257, 272),
            (1000, 1024),
            (65_535, 65_536),
            (100_000, 100_352),
            (1_040_000, 1_048_576),
            (1_048_576, 1_048_576),
        ] {
            assert_eq!(padded_len(length, 1 << 20), expected, "{length}");
        }
        assert_eq!(padded_len(65_000, 65_536), 65_536);
        let buckets: BTreeSet<_> =
            (0..=1 << 20).map(|length| padded_len(length, 1 << 20)).collect();
        assert!(buckets.len() < 300, "{}", buckets.len());
    }

    #[test]
    fn a_bucket_holds_its_length_wastes_little_and_is_its_own_bucket() {
        for length in (0..70_000).chain([usize::MAX / 2, usize::MAX - 1, usize::MAX]) {
            let padded = padme(length);
            assert!(padded >= length && padded - length <= length / 8, "{length} → {padded}");
            assert_eq!(padme(padded), padded);
        }
    }
}
