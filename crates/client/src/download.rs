//! Getting one file: stat, read, and write it whole beside its place before it takes the name.

use std::path::Path;
use std::sync::Arc;

use coffer_crypto::plaintext::Plaintext;
use coffer_model::name::RemotePath;
use coffer_model::object::Kind;
use futures_util::stream::TryStreamExt;

use crate::content::{Content, FileReader, SLOTS_AHEAD};
use crate::error::ClientError;
use crate::local::{LocalDir, Unfinished};
use crate::node::{Found, open_attributes};
use crate::options::GetOptions;
use crate::progress::Progress;
use crate::resolve::all_of_a_small_file;
use crate::session::Session;
use crate::upload::blocking;

/// Permission bits of a local file where the remote one has no attributes to say them.
const FILE_MODE: u32 = 0o600;

impl Session {
    /// Reads a file, or an older version of it, front to back.
    pub async fn open(
        &self,
        path: &RemotePath,
        version: Option<u64>,
    ) -> Result<FileReader, ClientError> {
        let (_, content) = self.content(path, version).await?;
        let length = content.length;
        Ok(FileReader::new(self, content, 0, length))
    }

    /// Reads the bytes `from..to` of a file, or of an older version of it, as far as there are any.
    pub async fn open_range(
        &self,
        path: &RemotePath,
        version: Option<u64>,
        from: u64,
        to: u64,
    ) -> Result<FileReader, ClientError> {
        let (_, content) = self.content(path, version).await?;
        Ok(FileReader::new(self, content, from, to))
    }

    /// Reads up to `count` bytes at `offset`; fewer at the end of the file. For ranges that fit into
    /// memory.
    pub async fn read_range(
        &self,
        path: &RemotePath,
        version: Option<u64>,
        offset: u64,
        count: u64,
    ) -> Result<Vec<u8>, ClientError> {
        let (_, content) = self.content(path, version).await?;
        let mut reader = FileReader::new(self, content, offset, offset.saturating_add(count));
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Gets a file. It is written beside `local` and takes the name when it is whole.
    pub async fn get_file(
        &self,
        path: &RemotePath,
        local: &Path,
        options: &GetOptions,
        progress: &dyn Progress,
    ) -> Result<u64, ClientError> {
        let (found, content) = self.content(path, options.version).await?;
        progress.found(1, content.length);
        let (dir, name) = LocalDir::of_file(local)?;
        let dir = Arc::new(dir);
        if !options.overwrite && dir.exists(&name)? {
            return Err(ClientError::Exists { what: local.display().to_string() });
        }
        let length =
            self.fetch_to(&found, content, &dir, &name, options.overwrite, progress).await?;
        progress.done(&path.to_string());
        self.save_marks_if_due().await?;
        Ok(length)
    }

    /// Writes a version into a directory under `name`.
    pub(crate) async fn fetch_to(
        &self,
        found: &Found,
        content: Content,
        dir: &Arc<LocalDir>,
        name: &Path,
        overwrite: bool,
        progress: &dyn Progress,
    ) -> Result<u64, ClientError> {
        let mode = match &found.attrs {
            Some(attrs) => {
                let key = found.secret.object_key();
                open_attributes(&self.wire().cluster, found.inode(), key, attrs)?.mode.bits()
            }
            None => FILE_MODE,
        };
        let (length, mtime_ns) = (content.length, content.mtime_ns);
        let dir = Arc::clone(dir);
        let file = Arc::new(blocking(move || Unfinished::create(dir)).await?);
        match &content.inline {
            Some(inline) => {
                let (file, inline) = (Arc::clone(&file), inline.to_vec());
                blocking(move || file.write_at(0, &inline)).await?;
                progress.bytes(length);
            }
            None => {
                let content = Arc::new(content);
                let slots = content.head.slots;
                let class = content.head.class.bytes();
                let (of, to) = (&content, &file);
                self.jobs(Arc::clone(&content), 0, slots)
                    .map_ok(|job| async move {
                        let file = Arc::clone(to);
                        let bytes = (length - job.slot * class).min(class);
                        let write = move |slot, plaintext: Plaintext| {
                            file.write_at(slot * class, &plaintext)
                        };
                        let written = self.open_slot(Arc::clone(of), job, write).await?;
                        drop(written);
                        progress.bytes(bytes);
                        Ok(())
                    })
                    .try_buffer_unordered(SLOTS_AHEAD)
                    .try_collect::<()>()
                    .await?;
            }
        }
        let name = name.to_owned();
        blocking(move || file.finish(&name, length, mode, mtime_ns, overwrite)).await?;
        Ok(length)
    }

    /// A file and one of its versions.
    pub(crate) async fn content(
        &self,
        path: &RemotePath,
        version: Option<u64>,
    ) -> Result<(Found, Content), ClientError> {
        let found = self.locate(path, all_of_a_small_file()).await?.live(path)?;
        let what = path.to_string();
        match found.kind() {
            Kind::File => {}
            Kind::Directory => return Err(ClientError::IsADirectory { what }),
            _ => return Err(ClientError::NotAFile { what }),
        }
        let current = Content::current(self, &found, &what)?;
        let content = match version {
            Some(version) if version != current.head.version => {
                self.version_of(&found, version, &what).await?
            }
            _ => current,
        };
        Ok((found, content))
    }
}
