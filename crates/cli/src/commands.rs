//! The user's commands, one function each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use coffer_client::contact::StateDir;
use coffer_client::progress::Transfer;
use coffer_client::{
    AccountOptions, Authority, ClientError, Endpoint, Engine, GetOptions, Progress as Listener,
    PutOptions, PutTreeOptions, Registered, Session, SessionFile, TreeReport, WriteOptions,
};
use coffer_model::chunk::ChunkClass;
use coffer_model::name::{FileName, RemotePath, UserName};
use coffer_model::object::Kind;
use coffer_proto::v1::GetStatusResponse;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, stdout};

use crate::args::{Command, Global, PasswordArgs, RepairCommand, ScrubCommand};
use crate::exit::Partial;
use crate::look::Wanted;
use crate::output;
use crate::password;
use crate::progress::Progress;

/// Runs one command.
pub(crate) async fn run(global: Global, command: Command) -> Result<()> {
    let context = Console { global };
    match command {
        Command::Register { name, password, invite } => {
            return context.register(&name, &password, invite.as_deref()).await;
        }
        Command::Login { name, password } => return context.login(&name, &password).await,
        Command::Version => return context.version().await,
        Command::Status => return context.status().await,
        Command::Doctor => return context.doctor().await,
        Command::Repair(RepairCommand::Status) => return context.repair_status().await,
        Command::Scrub(ScrubCommand::Status) => return context.scrub_status().await,
        Command::Df => return context.df().await,
        Command::Passwd { name, password, new_password_file } => {
            return context.passwd(name.as_deref(), &password, new_password_file).await;
        }
        Command::Recover { name, code_file, new_password_file } => {
            return context.recover(&name, code_file, new_password_file).await;
        }
        Command::Logout => return context.logout().await,
        _ => {}
    }
    let session = context.session()?;
    let done = context.with_session(&session, command).await;
    let done = context.with_figures(&session, done).await;
    // What was seen is remembered also when the command failed.
    let saved = session.save_marks().await;
    done?;
    Ok(saved?)
}

/// What all commands share.
pub(crate) struct Console {
    pub(crate) global: Global,
}

impl Listener for Progress {
    fn found(&self, files: u64, bytes: u64) {
        self.add_total(files, bytes);
    }

    fn bytes(&self, count: u64) {
        self.advance(0, count);
    }

    fn done(&self, _path: &str) {
        self.advance(1, 0);
    }

    fn failed(&self, path: &str, error: &ClientError) {
        output::remark(&format!("coffer: {path}: {error}"));
    }
}

pub(crate) fn path(text: &str) -> Result<RemotePath, ClientError> {
    text.parse().map_err(|error: coffer_model::name::NameError| ClientError::InvalidName {
        name: text.to_owned(),
        why: error,
    })
}

fn user_name(text: &str) -> Result<UserName, ClientError> {
    text.parse().map_err(|error: coffer_model::name::NameError| ClientError::InvalidName {
        name: text.to_owned(),
        why: error,
    })
}

fn invite_of(text: &str) -> Result<Vec<u8>, ClientError> {
    hex::decode(text).map_err(|_| ClientError::Invalid {
        what: "the invite is not one: it has hexadecimal digits only, two for each byte".to_owned(),
    })
}

/// The last name of a path on this machine.
fn local_name(path: &Path) -> Result<FileName, ClientError> {
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = absolute.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    FileName::from_bytes(name).map_err(|error| ClientError::InvalidName {
        name: String::from_utf8_lossy(name).into_owned(),
        why: error,
    })
}

impl Console {
    fn file(&self) -> Result<SessionFile, ClientError> {
        SessionFile::standard(&self.global.session)
    }

    fn session(&self) -> Result<Session, ClientError> {
        let mut state = self.file()?.load()?;
        if let Some(server) = self.global.server.as_deref().filter(|it| *it != state.server()) {
            state.reach(server, self.global.server_name.as_deref());
        }
        Session::resume(state, &StateDir::standard()?)
    }

    pub(crate) async fn engine(&self) -> Result<Engine> {
        let Some(server) = self.global.server.clone() else {
            let what = "say where the cluster is: --server host:port, or $COFFER_SERVER";
            return Err(ClientError::Invalid { what: what.to_owned() }.into());
        };
        let authority = match &self.global.ca {
            Some(file) => Authority::PemFile(file.clone()),
            None => Authority::Pinned,
        };
        let server_name = self.global.server_name.clone();
        let endpoint = Endpoint { server, server_name, authority };
        Ok(Engine::connect(&endpoint, StateDir::standard()?).await?)
    }

    /// Shows JSON or text.
    pub(crate) fn show(&self, value: &Value, text: &str) {
        if self.global.json { output::json(value) } else { output::line(text) }
    }

    /// Says what was done, to whoever watches.
    pub(crate) fn told(&self, value: &Value, text: &str) {
        if self.global.json { output::json(value) } else { output::remark(text) }
    }

    async fn register(
        &self,
        name: &str,
        password: &PasswordArgs,
        invite: Option<&str>,
    ) -> Result<()> {
        let name = user_name(name)?;
        self.file()?.prepare()?;
        let invite = invite.map(invite_of).transpose()?;
        let options = AccountOptions { invite, ..AccountOptions::standard() };
        let engine = self.engine().await?;
        let password = password::read(password, true)?;
        let registered = engine.register(&name, &password, &options).await?;
        self.show_code(&name, "was made", &registered);
        let state = engine.login(&name, &password).await?;
        self.file()?.save(&state)?;
        Ok(())
    }

    fn show_code(&self, name: &UserName, done: &str, registered: &Registered) {
        let code = registered.recovery_code.to_text();
        self.show(
            &json!({ "user": name.as_str(), "recovery_code": code.as_str() }),
            &format!(
                "user {name} {done}\n\nrecovery code (write it down, it is shown only now):\n  {}\n",
                code.as_str()
            ),
        );
    }

    async fn recover(&self, name: &str, code: Option<PathBuf>, new: Option<PathBuf>) -> Result<()> {
        let name = user_name(name)?;
        self.file()?.prepare()?;
        let engine = self.engine().await?;
        let code = password::read_code(code.as_deref())?;
        let new = password::read_new(new.as_deref())?;
        let recovered = engine.recover(&name, &code, &new).await?;
        self.show_code(&name, "has a new password, and the old code is good no more", &recovered);
        let state = engine.login(&name, &new).await?;
        self.file()?.save(&state)?;
        Ok(())
    }

    async fn login(&self, name: &str, password: &PasswordArgs) -> Result<()> {
        let name = user_name(name)?;
        self.file()?.prepare()?;
        let engine = self.engine().await?;
        let password = password::read(password, false)?;
        let state = engine.login(&name, &password).await?;
        self.file()?.save(&state)?;
        let until = output::log_time_text(state.expires().unix_ms());
        self.told(
            &json!({ "user": name.as_str(), "expires_ms": state.expires().unix_ms() }),
            &format!("logged in as {name} until {until}"),
        );
        Ok(())
    }

    async fn logout(&self) -> Result<()> {
        let file = self.file()?;
        let session = Session::resume(file.load()?, &StateDir::standard()?)?;
        // The keys are wiped here whether or not the cluster can be told.
        let closed = session.close().await;
        file.wipe()?;
        closed.context("the keys were wiped, but the cluster could not be told")?;
        self.told(&json!({ "logged_out": true }), "logged out");
        Ok(())
    }

    async fn passwd(
        &self,
        name: Option<&str>,
        old: &PasswordArgs,
        new: Option<PathBuf>,
    ) -> Result<()> {
        let (name, engine) = match name {
            Some(name) => (user_name(name)?, self.engine().await?),
            None => {
                let state = self.file()?.load()?;
                (state.name().clone(), Engine::of_session(&state, StateDir::standard()?)?)
            }
        };
        let old = password::read(old, false)?;
        let new = password::read_new(new.as_deref())?;
        engine.change_password(&name, &old, &new).await?;
        self.told(&json!({ "user": name.as_str() }), &format!("{name} has a new password"));
        Ok(())
    }

    /// The state of a cluster is no secret; nobody needs to be logged in to see it.
    pub(crate) async fn cluster_status(&self) -> Result<GetStatusResponse> {
        match self.session() {
            Ok(session) => Ok(session.status().await?),
            Err(_) => Ok(self.engine().await?.status().await?),
        }
    }

    async fn version(&self) -> Result<()> {
        let ours = env!("CARGO_PKG_VERSION");
        let mut text = format!("coffer {ours}");
        let theirs = match self.known_engine().await {
            Ok(Some(engine)) => {
                engine.server_version().await.map_err(anyhow::Error::from).map(Some)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match &theirs {
            Ok(None) => {}
            Ok(Some(theirs)) => text += &format!("\ncluster {theirs}"),
            // Our own version was asked for first; it is told whether or not the cluster is there.
            Err(error) => text += &format!("\ncluster unknown: {error}"),
        }
        self.show(&json!({ "version": ours, "cluster": theirs.ok().flatten() }), &text);
        Ok(())
    }

    /// The cluster that was named, or that a session knows; none where there is neither.
    async fn known_engine(&self) -> Result<Option<Engine>> {
        if self.global.server.is_some() {
            return Ok(Some(self.engine().await?));
        }
        match self.file()?.load() {
            Ok(state) => Ok(Some(Engine::of_session(&state, StateDir::standard()?)?)),
            Err(_) => Ok(None),
        }
    }

    async fn with_session(&self, session: &Session, command: Command) -> Result<()> {
        match command {
            Command::Whoami => {
                let state = self.file()?.load()?;
                let until = output::log_time_text(session.expires().unix_ms());
                let (name, server) = (session.name(), state.server());
                self.show(
                    &json!({
                        "user": name.as_str(),
                        "server": server,
                        "cluster": state.cluster().to_string(),
                        "expires_ms": session.expires().unix_ms(),
                    }),
                    &format!("{name} at {server}, cluster {}, until {until}", state.cluster()),
                );
                Ok(())
            }
            Command::Put { source, target, recursive, if_version, small_slots, offset, append } => {
                let class = small_slots.then_some(ChunkClass::Small);
                let put = Put { class, if_version, offset, append };
                if recursive {
                    self.put_tree(session, &source, &target, class).await
                } else {
                    self.put(session, &source, &target, put).await
                }
            }
            Command::Get { source, target, recursive, version, force } => {
                let options = GetOptions { version, overwrite: force };
                self.get(session, &source, target, recursive, &options).await
            }
            Command::Sync(args) => self.sync(session, &args).await,
            Command::Cat { path: from, version } => {
                print_file(session, &path(&from)?, version).await
            }
            Command::Ls { path: of, long, deleted } => self.ls(session, &of, long, deleted).await,
            Command::Tree { path: of, depth } => self.tree(session, &of, depth).await,
            Command::Find { path: of, name, ignore_case, kind, min_size, max_size } => {
                let wanted = Wanted { name, ignore_case, kind, min_size, max_size };
                self.find(session, &of, wanted).await
            }
            Command::Du { path: of, summarize } => self.du(session, &of, summarize).await,
            Command::Quota => self.quota(session).await,
            Command::Stat { path: of } => {
                let stat = session.stat(&path(&of)?).await?;
                self.show(&output::stat_json(&stat), &output::stat_text(&of, &stat));
                Ok(())
            }
            Command::Mkdir { path: of, parents } => Ok(session.mkdir(&path(&of)?, parents).await?),
            Command::Mv { source, target } => {
                let from = path(&source)?;
                let to = into_directory(session, &from, &target).await?;
                Ok(session.rename(&from, &to).await?)
            }
            Command::Cp { source, target, recursive } => {
                let from = path(&source)?;
                let to = into_directory(session, &from, &target).await?;
                let progress = Progress::new("copy", self.global.json);
                session.copy(&from, &to, recursive, &progress).await?;
                progress.finish();
                Ok(())
            }
            Command::Rm { path: of, recursive } => {
                Ok(session.remove(&path(&of)?, recursive).await?)
            }
            Command::Restore { path: of, version } => {
                let path = path(&of)?;
                match version {
                    Some(version) => {
                        let report = session.restore_version(&path, version).await?;
                        self.told(
                            &json!({ "version": report.version, "restored": version }),
                            &format!(
                                "{of}: version {version} is back as version {}",
                                report.version
                            ),
                        );
                    }
                    None => {
                        session.undelete(&path).await?;
                        self.told(&json!({ "restored": of }), &format!("{of} is back"));
                    }
                }
                Ok(())
            }
            Command::Versions { path: of } => {
                let versions = session.versions(&path(&of)?).await?;
                if self.global.json {
                    output::json(&versions.iter().map(output::version_json).collect());
                } else {
                    for version in &versions {
                        output::line(&output::version_line(version));
                    }
                }
                Ok(())
            }
            // Handled before there was a session, or no user's command.
            _ => Ok(()),
        }
    }

    async fn ls(&self, session: &Session, of: &str, long: bool, deleted: bool) -> Result<()> {
        let mut entries = session.list(&path(of)?, deleted).await?;
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        if self.global.json {
            output::json(&entries.iter().map(output::entry_json).collect());
        } else {
            for entry in &entries {
                output::line(&output::entry_line(entry, long));
            }
        }
        Ok(())
    }

    async fn put(&self, session: &Session, source: &Path, target: &str, put: Put) -> Result<()> {
        let from_stdin = source == Path::new("-");
        let progress = Progress::new("put", self.global.json);
        if put.offset.is_some() || put.append {
            let bytes = if from_stdin { read_stdin()? } else { read_local(source)? };
            let remote = path(target)?;
            let options = WriteOptions { if_version: put.if_version, ..WriteOptions::standard() };
            let report = match put.offset {
                Some(offset) => session.overwrite_range(&remote, offset, &bytes, &options).await?,
                None => session.append(&remote, &bytes, &options).await?,
            };
            self.told_report(&remote, report.version, report.length, &report.transfer);
            return Ok(());
        }
        let options =
            PutOptions { class: put.class, if_version: put.if_version, ..PutOptions::standard() };
        let report = if from_stdin {
            let remote = path(target)?;
            let reader = Box::new(std::io::stdin());
            let report = session.put(reader, Path::new("-"), &remote, &options, &progress).await?;
            (remote, report)
        } else {
            let metadata = std::fs::metadata(source).map_err(|error| ClientError::Local {
                doing: "read",
                path: source.into(),
                why: error.into(),
            })?;
            if metadata.is_dir() {
                let what = format!("{} is a directory; use -r", source.display());
                return Err(ClientError::Invalid { what }.into());
            }
            let remote = named_target(session, target, || local_name(source)).await?;
            let report = session.put_file(source, &remote, &options, &progress).await?;
            (remote, report)
        };
        progress.finish();
        let (remote, report) = report;
        self.told_report(&remote, report.version, report.length, &report.transfer);
        Ok(())
    }

    fn told_report(&self, remote: &RemotePath, version: u64, length: u64, transfer: &Transfer) {
        let mut value = transfer_json(transfer);
        if let Value::Object(fields) = &mut value {
            fields.insert("path".to_owned(), remote.to_string().into());
            fields.insert("version".to_owned(), version.into());
            fields.insert("size".to_owned(), length.into());
        }
        let text =
            format!("{remote}: version {version}, {length} bytes; {}", transfer_text(transfer));
        self.told(&value, &text);
    }

    async fn put_tree(
        &self,
        session: &Session,
        source: &Path,
        target: &str,
        class: Option<ChunkClass>,
    ) -> Result<()> {
        let progress = Arc::new(Progress::new("put", self.global.json));
        let remote = if target.ends_with('/') {
            path(target)?
                .join(local_name(source)?)
                .map_err(|error| ClientError::InvalidName { name: target.to_owned(), why: error })?
        } else {
            path(target)?
        };
        let options = PutTreeOptions { class, ..PutTreeOptions::standard() };
        let report = session.put_tree(source, &remote, &options, progress.clone()).await?;
        progress.finish();
        self.told_tree("put", &report)
    }

    fn told_tree(&self, verb: &str, report: &TreeReport) -> Result<()> {
        let mut value = transfer_json(&report.transfer);
        if let Value::Object(fields) = &mut value {
            for (key, number) in [
                ("files", report.files),
                ("directories", report.directories),
                ("symlinks", report.symlinks),
                ("bytes", report.bytes),
                ("failed", report.failed),
            ] {
                fields.insert(key.to_owned(), number.into());
            }
        }
        let text = format!(
            "{verb}: {} files, {} directories, {} symlinks, {} MiB",
            report.files,
            report.directories,
            report.symlinks,
            report.bytes >> 20
        );
        self.told(&value, &text);
        if report.failed > 0 { Err(Partial.into()) } else { Ok(()) }
    }

    async fn get(
        &self,
        session: &Session,
        source: &str,
        target: Option<PathBuf>,
        recursive: bool,
        options: &GetOptions,
    ) -> Result<()> {
        let remote = path(source)?;
        if target.as_deref() == Some(Path::new("-")) {
            return print_file(session, &remote, options.version).await;
        }
        let name = match remote.split() {
            Some((_, name)) => name.to_string(),
            None => remote.home().map_or_else(|| "root".to_owned(), ToString::to_string),
        };
        let local = match target {
            None => PathBuf::from(&name),
            Some(target) if !recursive && target.is_dir() => target.join(&name),
            Some(target) => target,
        };
        let progress = Arc::new(Progress::new("get", self.global.json));
        if recursive {
            let report = session.get_tree(&remote, &local, options, progress.clone()).await?;
            progress.finish();
            return self.told_tree("got", &report);
        }
        let bytes = session.get_file(&remote, &local, options, &*progress).await?;
        progress.finish();
        self.told(
            &json!({ "path": local.display().to_string(), "bytes": bytes }),
            &format!("{}: {bytes} bytes", local.display()),
        );
        Ok(())
    }
}

/// How one file is put.
struct Put {
    class: Option<ChunkClass>,
    if_version: Option<u64>,
    offset: Option<u64>,
    append: bool,
}

fn transfer_json(transfer: &Transfer) -> Value {
    json!({
        "chunks_sent": transfer.slots_sent,
        "chunk_bytes_sent": transfer.chunk_bytes_sent,
        "slot_bytes_sent": transfer.slot_change_bytes_sent,
        "chunks_skipped": transfer.chunks_skipped,
        "holes": transfer.holes,
    })
}

fn transfer_text(transfer: &Transfer) -> String {
    format!(
        "sent {} chunks ({} bytes) and {} bytes of slots, {} chunks were there already",
        transfer.slots_sent,
        transfer.chunk_bytes_sent,
        transfer.slot_change_bytes_sent,
        transfer.chunks_skipped
    )
}

/// Where a file goes: into a directory under its own name, or to exactly that path.
async fn named_target(
    session: &Session,
    target: &str,
    name: impl FnOnce() -> Result<FileName, ClientError>,
) -> Result<RemotePath, ClientError> {
    let remote = path(target)?;
    let is_directory = target.ends_with('/')
        || remote.split().is_none()
        || matches!(session.stat(&remote).await, Ok(stat) if stat.kind == Kind::Directory);
    if !is_directory {
        return Ok(remote);
    }
    remote
        .join(name()?)
        .map_err(|error| ClientError::InvalidName { name: target.to_owned(), why: error })
}

/// As [`named_target`], for something that is remote already.
async fn into_directory(
    session: &Session,
    from: &RemotePath,
    target: &str,
) -> Result<RemotePath, ClientError> {
    let Some((_, name)) = from.split() else {
        let what = format!("{from} is a whole tree and stays where it is");
        return Err(ClientError::Invalid { what });
    };
    named_target(session, target, || Ok(name.clone())).await
}

async fn print_file(session: &Session, from: &RemotePath, version: Option<u64>) -> Result<()> {
    let mut reader = session.open(from, version).await?;
    let mut out = stdout();
    while let Some(piece) = reader.next().await? {
        if let Err(error) = out.write_all(&piece).await {
            // Whoever read has had enough, as with `| head`.
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                return Ok(());
            }
            return Err(error.into());
        }
    }
    Ok(out.flush().await?)
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
    Ok(bytes)
}

fn read_local(source: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(source).map_err(|error| ClientError::Local {
        doing: "read",
        path: source.into(),
        why: error.into(),
    })
}
