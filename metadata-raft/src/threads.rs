//! Work that may wait for the disk, kept off the threads that run everything else.

use tokio::task::{JoinError, spawn_blocking};

/// Runs it on a thread of its own. Only a panic in it is an error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // A simulation has one thread, and says itself how long a disk takes.
    #[cfg(test)]
    if crate::member::simulation::is_on() {
        return Ok(crate::member::simulation::on_disk(work).await);
    }
    spawn_blocking(work).await
}
