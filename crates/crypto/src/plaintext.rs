//! Opened bytes. They are wiped when dropped, and cannot be printed, copied or serialised by accident.

use std::ops::Deref;

use zeroize::optimization_barrier;

/// Plaintext that was just opened or is about to be sealed.
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    /// Takes the bytes out; from here on wiping them is up to the caller.
    pub fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// Drops everything from `length` on, wiping it: padding, usually.
    pub fn truncate(&mut self, length: usize) {
        if let Some(rest) = self.0.get_mut(length..) {
            wipe(rest);
            self.0.truncate(length);
        }
    }

    /// Grows with zeros up to `length`; a longer plaintext stays as it is.
    pub(crate) fn pad(&mut self, length: usize) {
        if length > self.0.len() {
            // A reallocation would leave the old buffer unwiped.
            let mut padded = vec![0u8; length];
            padded[..self.0.len()].copy_from_slice(&self.0);
            *self = Self(padded);
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Room for `capacity` bytes; pushing more would leave unwiped copies.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        debug_assert!(self.0.capacity() - self.0.len() >= bytes.len(), "plaintext would move");
        self.0.extend_from_slice(bytes);
    }
}

impl From<Vec<u8>> for Plaintext {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Plaintext {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Plaintext {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Zeroes at memset speed. `Zeroize` writes byte by byte, which on a 1 MiB chunk costs half as much
/// as opening it.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    optimization_barrier(bytes);
}
