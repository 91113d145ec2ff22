//! A cluster that founds itself: its processes know nothing but where the authority is, and the join token.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::SystemTime;

use coffer_chaos::{coffer_binary, noise, wait_for};
use coffer_join::token::JoinToken;
use coffer_service::tls::{ClientAuth, LiveTls, TlsFiles};
use tempfile::TempDir;

const MEMBERS: [&str; 3] = ["metadata-0", "metadata-1", "metadata-2"];
const NODES: [&str; 3] = ["storage-0", "storage-1", "storage-2"];

/// Processes with a folder each, which they find at every start, as pods find their volumes.
struct Release {
    work: TempDir,
    runtime: TempDir,
    ports: BTreeMap<String, u16>,
    running: BTreeMap<String, Child>,
}

impl Release {
    fn new() -> Self {
        let work = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let names = ["authority", "gateway"].into_iter().chain(MEMBERS).chain(NODES);
        // All are held until each has its own.
        let held: Vec<(String, TcpListener)> = names
            .map(|name| (name.to_owned(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()))
            .collect();
        let ports = held
            .iter()
            .map(|(name, listener)| (name.clone(), listener.local_addr().unwrap().port()))
            .collect();
        let release = Self { work, runtime, ports, running: BTreeMap::new() };
        // Keys and login secrets as an administrator makes them; the rest of what is made is not used.
        let founded = release.dir().join("founded");
        let output = Command::new(coffer_binary().unwrap())
            .args(["found", "--machine", "a=127.0.0.1", "--machine", "b=127.0.0.2", "--dir"])
            .arg(&founded)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let secrets = release.dir().join("secrets");
        fs::rename(founded.join("secret"), &secrets).unwrap();
        let token = JoinToken::random().unwrap();
        fs::write(secrets.join("join-token"), token.to_text().as_bytes()).unwrap();
        for name in release.ports.keys() {
            release.configure(name);
        }
        release
    }

    fn dir(&self) -> &Path {
        self.work.path()
    }

    fn address(&self, name: &str) -> String {
        format!("localhost:{}", self.ports[name])
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.dir().join(name).join("data")
    }

    fn config(&self, name: &str) -> PathBuf {
        self.dir().join(name).join("config.toml")
    }

    fn configure(&self, name: &str) {
        let folder = self.dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let addresses = |names: &[&str]| {
            let quoted: Vec<String> =
                names.iter().map(|name| format!("{:?}", self.address(name))).collect();
            quoted.join(", ")
        };
        let mut text = format!("listen = \"127.0.0.1:{}\"\n", self.ports[name]);
        if name == "authority" {
            text += &format!(
                "data_dir = \"data\"\nca = \"../secrets/ca.pem\"\nissuer = \"../secrets/ca.pem\"\n\
                 key = \"../secrets/ca-key.pem\"\njoin_token_file = \"../secrets/join-token\"\n\
                 administrator = \"../secrets\"\nnames = [\"localhost\"]\nreplace_after = \"5s\"\n\
                 open_registration = true\nmembers = [{}]\nnodes = [{}]\naudit_log = \"audit.jsonl\"\n\
                 [names_of]\nmetadata = [\"localhost\"]\nstorage = [\"localhost\"]\ngateway = [\"localhost\"]\n",
                addresses(&MEMBERS),
                addresses(&NODES)
            );
            fs::write(self.config(name), text).unwrap();
            return;
        }
        text += "descriptor = \"data/enrolled/descriptor\"\n";
        if name.starts_with("metadata") {
            text += &format!(
                "data_dir = \"data/member\"\nlayout = \"data/enrolled/layout\"\nreplaces = {:?}\n\
                 opaque_setup = \"../secrets/opaque.setup\"\njoin_token_file = \"../secrets/join-token\"\n",
                self.address(name)
            );
        } else if name.starts_with("storage") {
            text += &format!(
                "data_dir = \"data/node\"\nadvertise = {:?}\njoin_token_file = \"../secrets/join-token\"\n\
                 report_every = \"500ms\"\n",
                self.address(name)
            );
        }
        text += "[tls]\nca = \"data/enrolled/tls/ca.pem\"\nkey = \"data/enrolled/tls/key.pem\"\n\
                 certificate = \"data/enrolled/tls/certificate.pem\"\n";
        fs::write(self.config(name), text).unwrap();
        let enrol = format!(
            "authority = {:?}\nca = \"../secrets/ca.pem\"\njoin_token_file = \"../secrets/join-token\"\n\
             dir = \"data/enrolled\"\nnames = [\"localhost\"]\n",
            self.address("authority"),
        );
        let place = format!("address = {:?}\n", self.address(name));
        let enrol = if name == "gateway" { enrol } else { enrol + &place };
        fs::write(folder.join("enrol.toml"), enrol).unwrap();
    }

    fn start(&mut self, name: &str) {
        let log = self.dir().join(format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let role = name.split('-').next().unwrap();
        let mut command = Command::new(coffer_binary().unwrap());
        command.arg(role).arg("--config").arg(self.config(name));
        if role != "authority" {
            command.arg("--enrol").arg(self.dir().join(name).join("enrol.toml"));
        }
        let child = command
            .env("COFFER_DIE_WITH_PARENT", std::process::id().to_string())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running.insert(name.to_owned(), child);
    }

    fn start_all(&mut self) {
        let names: Vec<String> = self.ports.keys().cloned().collect();
        for name in names {
            if !self.running.contains_key(&name) {
                self.start(&name);
            }
        }
    }

    fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills a process and takes its volume away.
    fn lose(&mut self, name: &str) {
        self.kill(name);
        fs::rename(self.volume(name), self.dir().join(format!("{name}-lost"))).unwrap();
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join(format!("{name}.log"))).unwrap_or_default()
    }

    fn wait_for_log(&self, name: &str, text: &str) {
        wait_for(&format!("{name} to say {text:?}"), || {
            Ok(self.log(name).contains(text).then_some(()))
        })
        .unwrap();
    }

    fn wait_for_end(&mut self, name: &str) -> ExitStatus {
        let mut child = self.running.remove(name).expect("it runs");
        wait_for(&format!("{name} to end"), || Ok(child.try_wait()?)).unwrap()
    }

    /// Runs `coffer` as alice.
    fn run(&self, args: &[&str]) -> Output {
        let sessions = self.runtime.path().join("alice");
        if !sessions.exists() {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new().mode(0o700).create(&sessions).unwrap();
        }
        Command::new(coffer_binary().unwrap())
            .args(args)
            .env("COFFER_SERVER", self.address("gateway"))
            .env("COFFER_CA", self.dir().join("secrets/ca.pem"))
            .env("COFFER_PASSWORD", "a password of five words")
            .env("XDG_RUNTIME_DIR", sessions)
            .env("XDG_STATE_HOME", self.dir().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn coffer(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait_until_well(&self) {
        wait_for("everything to be well", || {
            let told = self.run(&["status"]);
            Ok(String::from_utf8_lossy(&told.stdout)
                .starts_with("everything is well")
                .then_some(()))
        })
        .unwrap();
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.dir().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn is_still(&self, remote: &str, content: &[u8]) {
        let output = self.run(&["get", remote, "-"]);
        assert!(output.status.success(), "{remote}: {output:?}");
        assert_eq!(output.stdout, content, "{remote}");
    }

    fn cluster(&self) -> Vec<u8> {
        fs::read(self.volume("authority").join("cluster")).unwrap()
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Goal: processes that start in any order, before the authority is there, become one cluster without anybody doing
/// anything; and stay that cluster when volumes are lost, the authority's too. Method: everything is started before
/// the authority, one node last; then a node's, the first member's and the authority's volumes are taken away.
#[test]
fn a_cluster_founds_itself_and_outlives_lost_volumes() {
    let mut release = Release::new();
    for name in MEMBERS.iter().chain(&NODES[..2]).chain(&["gateway"]) {
        release.start(name);
    }
    release.wait_for_log("gateway", "this process waits for the authority");
    release.start("authority");
    release.wait_for_log(
        "metadata-0",
        &format!("founded when these are there: [\\\"{}", release.address("storage-2")),
    );
    // One that starts again while all wait applies again.
    release.kill("authority");
    release.start("authority");
    release.start("storage-2");
    release.wait_until_well();
    let founded = release.cluster();
    release.coffer(&["register", "alice"]);
    let content = noise(1, 3_000_000);
    let file = release.file("file", &content);
    release.coffer(&["put", &file, "/alice/one"]);

    // What has been enrolled once needs no authority to start again.
    release.kill("authority");
    for name in ["storage-0", "metadata-0"] {
        release.kill(name);
        release.start(name);
    }
    release.wait_until_well();
    release.is_still("/alice/one", &content);

    // The authority's volume is lost: whoever comes brings the records along.
    fs::rename(release.volume("authority"), release.dir().join("authority-lost")).unwrap();
    release.start("authority");
    release.kill("storage-1");
    release.start("storage-1");
    release.wait_for_log("authority", "a process brought them");
    assert_eq!(release.cluster(), founded, "there is one cluster for ever");

    // Lost volumes are replaced under the standing policy, the first member's too.
    release.lose("storage-2");
    release.start("storage-2");
    release.wait_for_log("storage-2", "this process has the place of a lost volume");
    release.lose("metadata-0");
    release.start("metadata-0");
    release.wait_for_log("metadata-0", "this process has the place of a lost volume");
    release.wait_until_well();
    release.coffer(&["put", &file, "/alice/two"]);
    release.is_still("/alice/one", &content);
    release.is_still("/alice/two", &content);
    assert_eq!(release.cluster(), founded, "there is one cluster for ever");
}

/// Goal: certificates are renewed, and another authority takes over, while everything runs and nothing is started
/// again. Method: certificates live for 40 s, which is less than this takes; the files of the authority are
/// replaced as an administrator does it (docs/operations.md), and each step is waited for; somebody works all along,
/// with what was pinned before it began.
#[test]
fn another_authority_takes_over_while_all_goes_on() {
    let mut release = Release::new();
    let path = release.config("authority");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("certificate_life = \"40s\"\n{config}")).unwrap();
    release.start_all();
    release.wait_until_well();
    release.coffer(&["register", "alice"]);
    let content = noise(2, 500_000);
    let file = release.file("file", &content);
    let work = |release: &Release, number: u32| {
        let remote = format!("/alice/file-{number}");
        release.coffer(&["put", &file, &remote]);
        release.is_still(&remote, &content);
    };
    work(&release, 0);
    let secrets = release.dir().join("secrets");
    let old = fs::read_to_string(secrets.join("ca.pem")).unwrap();
    let next = release.dir().join("next");
    release.coffer(&["admin", "new-authority", next.to_str().unwrap()]);
    let new = fs::read_to_string(next.join("ca.pem")).unwrap();

    let mut number = 0;
    let mut until_all = |what: &str, tls: &dyn Fn(&Path) -> bool| {
        let names: Vec<&String> =
            release.ports.keys().filter(|name| *name != "authority").collect();
        let reloads = |name: &str| release.log(name).matches("certificates reloaded").count();
        let mut seen = BTreeMap::new();
        wait_for(what, || {
            number += 1;
            work(&release, number);
            for name in &names {
                if tls(&release.volume(name).join("enrolled/tls")) && !seen.contains_key(*name) {
                    seen.insert((*name).clone(), reloads(name));
                }
            }
            // Once more after the files were seen: then they are in use.
            let in_use = seen.iter().filter(|(name, before)| reloads(name) > **before).count();
            Ok((in_use == names.len()).then_some(()))
        })
        .unwrap();
    };
    let trusts = |wanted: &str| {
        let wanted = wanted.to_owned();
        move |tls: &Path| fs::read_to_string(tls.join("ca.pem")).is_ok_and(|found| found == wanted)
    };
    // Both are trusted before the new one issues anything.
    let both = format!("{old}{new}");
    fs::write(secrets.join("ca.pem"), &both).unwrap();
    until_all("both authorities to be trusted", &trusts(&both));
    let certificate = next.join("ca.pem");
    let (admin, certificate) = (secrets.to_str().unwrap(), certificate.to_str().unwrap());
    release.coffer(&["admin", "authority", certificate, "--admin", admin]);
    // A session knows what was trusted when it began, so one is begun before the step that follows.
    release.coffer(&["login", "alice"]);
    work(&release, 1_000);
    // `issuer` is the first certificate of the same file here: both change in one step, as one Secret does.
    let former = fs::read(secrets.join("ca-key.pem")).unwrap();
    let both = format!("{new}{old}");
    fs::write(secrets.join("ca-key.pem"), fs::read(next.join("ca-key.pem")).unwrap()).unwrap();
    fs::write(secrets.join("ca.pem"), &both).unwrap();
    until_all("the new authority to issue", &trusts(&both));
    fs::write(secrets.join("ca.pem"), &new).unwrap();
    until_all("the old authority to be forgotten", &trusts(&new));
    assert_ne!(former, fs::read(secrets.join("ca-key.pem")).unwrap());
    // Who comes with the new authority only, and who had pinned the old one, both get in.
    work(&release, 1_001);

    // Who was away until the certificate had ended gets another one.
    release.kill("storage-0");
    let tls = release.volume("storage-0").join("enrolled/tls");
    let files = TlsFiles {
        ca: tls.join("ca.pem"),
        certificate: tls.join("certificate.pem"),
        key: tls.join("key.pem"),
    };
    let end = LiveTls::load(files, ClientAuth::Required).unwrap().expires().unwrap();
    wait_for("a certificate to end", || Ok((SystemTime::now() > end).then_some(()))).unwrap();
    release.start("storage-0");
    release.wait_until_well();
    for name in MEMBERS.iter().chain(&NODES) {
        assert!(!release.log(name).contains("panicked"), "{name}");
    }
}

/// Goal: only who has the join token gets a certificate, only for names of its role, nobody gets one for the id of
/// another, and a volume of another cluster is left alone. Method: one process after the other applies so; the log says
/// why it gets nothing, and the audit log has it.
#[test]
fn who_must_not_have_a_certificate_gets_none() {
    let mut release = Release::new();
    let mut other = Release::new();
    other.start_all();
    other.wait_until_well();
    other.kill("storage-0");
    release.start_all();
    release.wait_until_well();

    // Another token.
    let folder = release.dir().join("storage-0");
    let enrol = fs::read_to_string(folder.join("enrol.toml")).unwrap();
    release.lose("storage-0");
    let token = JoinToken::random().unwrap();
    fs::write(folder.join("token"), token.to_text().as_bytes()).unwrap();
    fs::write(folder.join("enrol.toml"), enrol.replace("../secrets/join-token", "token")).unwrap();
    release.start("storage-0");
    release.wait_for_log("storage-0", "ENROLMENT_DENIED");
    // A name of others.
    release.kill("storage-0");
    fs::write(
        folder.join("enrol.toml"),
        enrol.replace("names = [\"localhost\"]", "names = [\"gateway.example\"]"),
    )
    .unwrap();
    release.start("storage-0");
    release.wait_for_log("storage-0", "NAME_NOT_ALLOWED");
    release.kill("storage-0");
    fs::write(folder.join("enrol.toml"), &enrol).unwrap();

    // The id of another with a key of its own: it stands at byte 44 of the identity.
    fs::remove_dir_all(release.volume("storage-0")).unwrap();
    release.start("storage-0");
    wait_for("a new volume", || {
        Ok(fs::read(release.volume("storage-0").join("node/identity")).ok())
    })
    .unwrap();
    release.kill("storage-0");
    let taken = fs::read(release.volume("storage-1").join("node/identity")).unwrap();
    let path = release.volume("storage-0").join("node/identity");
    let mut own = fs::read(&path).unwrap();
    own[44..60].copy_from_slice(&taken[44..60]);
    let checksum = blake3::hash(&own[..156]);
    own[156..].copy_from_slice(checksum.as_bytes());
    fs::write(&path, own).unwrap();
    let _ = fs::remove_dir_all(release.volume("storage-0").join("enrolled"));
    release.start("storage-0");
    assert!(!release.wait_for_end("storage-0").success());
    assert!(release.log("storage-0").contains("ID_TAKEN"), "{}", release.log("storage-0"));

    // A volume of another cluster, as whole as it was.
    fs::remove_dir_all(release.volume("storage-0")).unwrap();
    fs::rename(other.volume("storage-0"), release.volume("storage-0")).unwrap();
    let _ = fs::remove_dir_all(release.volume("storage-0").join("enrolled"));
    let before = fs::read(&path).unwrap();
    release.start("storage-0");
    assert_eq!(release.wait_for_end("storage-0").code(), Some(18));
    assert!(release.log("storage-0").contains("FOREIGN_VOLUME"), "{}", release.log("storage-0"));
    assert_eq!(fs::read(&path).unwrap(), before, "the volume is as it was");

    wait_for("the audit log to have all of it", || {
        let audit = fs::read_to_string(release.dir().join("authority/audit.jsonl"))?;
        let reasons = ["ENROLMENT_DENIED", "NAME_NOT_ALLOWED", "ID_TAKEN", "FOREIGN_VOLUME"];
        Ok(reasons.iter().all(|reason| audit.contains(reason)).then_some(()))
    })
    .unwrap();
    // Nobody had to do without the cluster meanwhile.
    release.coffer(&["register", "alice"]);
    let file = release.file("file", b"content");
    release.coffer(&["put", &file, "/alice/one"]);
    release.is_still("/alice/one", b"content");
}
