//! Where the content of an upload comes from: a local file, which can be read again, or a stream, which
//! cannot. Both are read slot by slot, front to back, off the event loop.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt};

use crate::content::FileReader;
use crate::error::ClientError;

/// Content to be put.
#[derive(Clone)]
pub(crate) enum Source {
    /// A regular file of a length that was looked at once.
    File { file: Arc<File>, path: PathBuf, length: u64 },
    /// Bytes that are there already.
    Memory(Arc<[u8]>),
    /// A version of a remote file, read front to back.
    Remote(Arc<tokio::sync::Mutex<Remote>>, u64),
    /// Pieces as they come, front to back.
    Pieces(Arc<tokio::sync::Mutex<Pieces>>),
    /// A stream.
    Stream { reader: Arc<Mutex<Box<dyn Read + Send>>>, path: PathBuf },
}

/// A remote file that is being read, and what was read ahead of it.
pub(crate) struct Remote {
    reader: FileReader,
    ahead: Vec<u8>,
}

/// Pieces that come, and what came of them ahead of time.
pub(crate) struct Pieces {
    pieces: PieceStream,
    ahead: BytesMut,
}

/// Content that comes in pieces of any size.
pub type PieceStream = BoxStream<'static, Result<Bytes, ClientError>>;

impl Pieces {
    async fn read(&mut self, count: usize) -> Result<Vec<u8>, ClientError> {
        while self.ahead.len() < count
            && let Some(piece) = self.pieces.next().await
        {
            self.ahead.extend_from_slice(&piece?);
        }
        let taken = self.ahead.split_to(count.min(self.ahead.len()));
        Ok(taken.to_vec())
    }
}

impl Remote {
    async fn read(&mut self, count: usize) -> Result<Vec<u8>, ClientError> {
        while self.ahead.len() < count
            && let Some(piece) = self.reader.next().await?
        {
            self.ahead.extend_from_slice(&piece);
        }
        let rest = self.ahead.split_off(count.min(self.ahead.len()));
        Ok(std::mem::replace(&mut self.ahead, rest))
    }
}

impl Source {
    /// A remote file.
    pub(crate) fn remote(reader: FileReader) -> Self {
        let length = reader.length();
        let remote = Remote { reader, ahead: Vec::new() };
        Self::Remote(Arc::new(tokio::sync::Mutex::new(remote)), length)
    }

    /// A file that is open.
    pub(crate) fn file(file: File, path: &Path) -> Result<Self, ClientError> {
        let length =
            file.metadata().map_err(|error| ClientError::local("look at", path, error))?.len();
        Ok(Self::File { file: Arc::new(file), path: path.to_owned(), length })
    }

    /// A stream, with a name for messages.
    pub(crate) fn stream(reader: Box<dyn Read + Send>, name: &Path) -> Self {
        Self::Stream { reader: Arc::new(Mutex::new(reader)), path: name.to_owned() }
    }

    /// Pieces as they come.
    pub(crate) fn pieces(pieces: PieceStream) -> Self {
        let pieces = Pieces { pieces, ahead: BytesMut::new() };
        Self::Pieces(Arc::new(tokio::sync::Mutex::new(pieces)))
    }

    /// How long the content is, where that is known beforehand.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::File { length, .. } | Self::Remote(_, length) => Some(*length),
            Self::Memory(bytes) => Some(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::Stream { .. } | Self::Pieces(_) => None,
        }
    }

    /// Whether the content can be read a second time.
    pub(crate) fn is_repeatable(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Memory(_))
    }

    fn read(&self, offset: u64, count: usize) -> Result<Vec<u8>, ClientError> {
        match self {
            Self::File { file, path, length } => {
                let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
                let mut bytes = vec![0; count.min(left)];
                match file.read_exact_at(&mut bytes, offset) {
                    Ok(()) => Ok(bytes),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        Err(ClientError::SourceChanged { path: path.clone() })
                    }
                    Err(error) => Err(ClientError::local("read", path, error)),
                }
            }
            Self::Memory(content) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let to = from.saturating_add(count).min(content.len());
                Ok(content[from..to].to_vec())
            }
            Self::Remote(..) | Self::Pieces(_) => Err(ClientError::Stopped),
            Self::Stream { reader, path } => {
                let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
                let mut bytes = Vec::with_capacity(count);
                let limit = u64::try_from(count).unwrap_or(u64::MAX);
                reader
                    .by_ref()
                    .take(limit)
                    .read_to_end(&mut bytes)
                    .map_err(|error| ClientError::local("read", path, error))?;
                Ok(bytes)
            }
        }
    }

    /// Reads up to `count` bytes at `offset`; fewer only at the end. Streams and remote files must be
    /// read front to back.
    pub(crate) async fn read_off(&self, offset: u64, count: usize) -> Result<Vec<u8>, ClientError> {
        if let Self::Remote(remote, _) = self {
            return remote.lock().await.read(count).await;
        }
        if let Self::Pieces(pieces) = self {
            return pieces.lock().await.read(count).await;
        }
        let source = self.clone();
        tokio::task::spawn_blocking(move || source.read(offset, count))
            .await
            .map_err(|_| ClientError::Stopped)?
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compared block by block, which the compiler turns into wide loads.
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|block| *block == ZEROS[..block.len()])
}
