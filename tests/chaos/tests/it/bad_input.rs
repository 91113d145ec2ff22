//! Bad input: a typed error that says what to do, a stable exit code, and nothing lost.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

use coffer_chaos::{Cluster, coffer_binary};

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_the_command_line_refuses() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    let file = work.join("file");
    fs::write(&file, "content").unwrap();
    let file = file.to_str().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    cluster.coffer("bobby", &["register", "bobby"]).unwrap();
    cluster.coffer("alice", &["put", file, "/alice/file"]).unwrap();
    cluster.coffer("alice", &["mkdir", "-p", "/alice/dir/below"]).unwrap();

    let long = format!("/alice/{}", "x".repeat(256));
    let rows: &[(&[&str], i32)] = &[
        // Names.
        (&["put", file, "/alice//x"], 11),
        (&["put", file, &long], 11),
        (&["put", file, "/alice/../bobby/x"], 11),
        (&["put", file, "/alice/./x"], 11),
        (&["put", file, "alice/x"], 11),
        (&["put", file, "/alice/a\u{202E}b"], 11),
        (&["put", file, "/alice/u\u{308}"], 11),
        (&["mkdir", "/alice/a\tb"], 11),
        // What is there and what is not.
        (&["cat", "/alice/nothing"], 3),
        (&["rm", "/alice/nothing"], 3),
        (&["mkdir", "/alice/dir"], 4),
        (&["rm", "/alice/dir"], 12),
        (&["cat", "/alice/dir"], 12),
        (&["ls", "/alice/file/x"], 12),
        // Renames that cannot be.
        (&["mv", "/alice/dir", "/alice/dir/below/inside"], 11),
        (&["mv", "/alice/file", "/bobby/file"], 6),
        // Other people's homes.
        (&["ls", "/bobby"], 6),
        (&["put", file, "/bobby/x"], 6),
        (&["ls", "/nobody"], 6),
        // A stale if-version.
        (&["put", file, "/alice/file", "--if-version", "7"], 5),
        (&["put", file, "/alice/file", "--if-version", "0"], 4),
        // This machine.
        (&["put", "/no/such/file", "/alice/x"], 13),
        (&["get", "/alice/file", "/no/such/folder/x"], 13),
        // The command line.
        (&["put"], 2),
        (&["frobnicate"], 2),
    ];
    for (args, code) in rows {
        let output = cluster.run("alice", args).unwrap();
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(*code), "coffer {args:?}: {error}");
        assert!(!error.trim().is_empty() && !error.contains("panicked"), "{args:?}: {error}");
    }
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/file"]).unwrap(), "content");
    assert_eq!(cluster.coffer("alice", &["ls", "/alice"]).unwrap(), "dir/\nfile\n");

    // Names that no command line can carry come from folders.
    let folder = work.join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(OsStr::from_bytes(b"not-utf8-\xff")), "x").unwrap();
    fs::write(folder.join("good"), "y").unwrap();
    let output =
        cluster.run("alice", &["put", "-r", folder.to_str().unwrap(), "/alice/folder"]).unwrap();
    assert_eq!(output.status.code(), Some(14), "{}", error_of(&output));
    assert!(error_of(&output).contains("UTF-8"), "{}", error_of(&output));
    assert_eq!(cluster.coffer("alice", &["cat", "/alice/folder/good"]).unwrap(), "y");
}

#[test]
fn passwords_users_and_sessions() {
    let cluster = Cluster::start().unwrap();
    let work = cluster.work_dir().unwrap();
    cluster.coffer("alice", &["register", "alice"]).unwrap();
    let wrong = work.join("wrong");
    fs::write(&wrong, "not the password").unwrap();
    let wrong = wrong.to_str().unwrap();

    let output = cluster.run("other", &["login", "alice", "--password-file", wrong]).unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", error_of(&output));
    let known = error_of(&output);
    let output = cluster.run("other", &["login", "nobody", "--password-file", wrong]).unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", error_of(&output));
    // Whether a user exists cannot be told from the answer.
    assert_eq!(error_of(&output).replace("nobody", "alice"), known);

    let output = cluster.run("other", &["register", "alice"]).unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", error_of(&output));
    let output = cluster.run("other", &["register", "Alice!"]).unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", error_of(&output));
    let output = cluster.run("other", &["ls", "/"]).unwrap();
    assert_eq!(output.status.code(), Some(8), "{}", error_of(&output));
}

#[test]
fn a_configuration_with_three_faults_reports_all_three() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    fs::write(
        &config,
        "listen = \"nowhere\"\ndescriptr = \"x\"\n[tls]\nca = \"a\"\ncertificate = \"b\"\nkey = 7\n",
    )
    .unwrap();
    for role in ["gateway", "storage", "metadata"] {
        let output = Command::new(coffer_binary().unwrap())
            .args([role, "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = error_of(&output);
        assert!(!output.status.success(), "{role}");
        for key in ["listen", "descriptr", "tls.key"] {
            assert!(error.contains(key), "{role} does not name {key}:\n{error}");
        }
    }
}

#[test]
fn a_volume_of_another_cluster_is_refused() {
    let mut first = Cluster::start().unwrap();
    let mut second = Cluster::start().unwrap();
    first.stop().unwrap();
    second.stop().unwrap();
    for name in ["storage-1", "metadata-1"] {
        let (ours, foreign) = (
            first.cluster_dir().join(name).join("data"),
            second.cluster_dir().join(name).join("data"),
        );
        let aside = first.cluster_dir().join(name).join("aside");
        fs::rename(&ours, &aside).unwrap();
        fs::rename(&foreign, &ours).unwrap();
        let role = name.split('-').next().unwrap();
        let output = Command::new(coffer_binary().unwrap())
            .args([role, "--config"])
            .arg(first.cluster_dir().join(name).join("config.toml"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = error_of(&output);
        assert!(!output.status.success(), "{name}");
        assert!(error.contains("cluster"), "{name}: {error}");
        fs::rename(&ours, &foreign).unwrap();
        fs::rename(&aside, &ours).unwrap();
    }
    // Nothing was harmed.
    first.start_again().unwrap();
    second.start_again().unwrap();
}
