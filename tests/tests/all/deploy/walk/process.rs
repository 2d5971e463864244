//! Processes as a container engine or systemd would start them.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use super::super::containerfile::Image;
use super::super::unit::Unit;

/// Libraries that the base image has.
const IN_BASE_IMAGE: [&str; 5] = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux-", "linux-vdso.so"];

/// A process and what it prints.
pub(super) struct Started {
    child: Child,
    log: PathBuf,
    /// Where it says how it is.
    manager: Option<UnixDatagram>,
}

impl Started {
    pub(super) fn new(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{command:?}; tests/run deploy installs it"))?;
        Ok(Self { child, log: log.to_owned(), manager: None })
    }

    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("it has ended")
    }

    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    pub(super) async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Shown by the test runner if the scenario fails.
        eprintln!("--- {}\n{}", self.log.display(), self.log());
    }
}

/// A root folder with what the image holds, read-only, and a volume in it.
pub(super) struct Container {
    root: PathBuf,
    image: Image,
    log: PathBuf,
}

impl Container {
    pub(super) fn new(dir: &Path, image: &Image) -> anyhow::Result<Self> {
        let (root, volume) = (dir.join("root"), dir.join("volume"));
        let program = relay_program()?;
        let mut files = vec![(program.clone(), root.join(image.entrypoint[0].trim_start_matches('/')))];
        for library in libraries(&program)? {
            let name = library.file_name().context("a library")?.to_string_lossy().into_owned();
            let known = IN_BASE_IMAGE.iter().any(|known| name.starts_with(known));
            ensure!(known, "{} is not in the base image", library.display());
            let place = root.join(library.strip_prefix("/")?);
            files.push((library, place));
        }
        for (from, to) in files {
            std::fs::create_dir_all(to.parent().context("a folder")?)?;
            std::fs::copy(from, to)?;
        }
        let data = root.join(image.volume.trim_start_matches('/'));
        std::fs::DirBuilder::new().mode(0o755).create(&data)?;
        std::fs::DirBuilder::new().mode(0o700).create(&volume)?;
        chown(&volume, Some(image.user), Some(image.user))?;
        // The temporary folder itself is for its owner only.
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        mount(&["--bind"], &root, &root)?;
        mount(&["-o", "remount,bind,ro"], &root, &root)?;
        mount(&["--bind"], &volume, &data)?;
        Ok(Self { root, image: Image::read(), log: dir.join("relay.log") })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Starts the image with this environment and these arguments.
    pub(super) fn run(
        &self,
        environment: &[(String, String)],
        arguments: &[String],
    ) -> anyhow::Result<Started> {
        let words: Vec<String> = self.image.entrypoint.iter().chain(arguments).cloned().collect();
        Started::new(self.command(&words, environment), &self.log)
    }

    /// The image's health check: something if it succeeds.
    pub(super) fn health(&self, image: &Image) -> anyhow::Result<Option<()>> {
        let command = self.command(&image.health, &[]);
        let output = command.into_std().output()?;
        Ok(output.status.success().then_some(()))
    }

    fn command(&self, words: &[String], environment: &[(String, String)]) -> Command {
        let (user, files) = (self.image.user, open_files());
        let mut command = Command::new("setpriv");
        command
            .args([
                "--no-new-privs",
                "--inh-caps=-all",
                "prlimit",
                &format!("--nofile={files}:{files}"),
                "chroot",
            ])
            .args([format!("--userspec={user}:{user}"), "--groups=".to_owned()])
            .arg(&self.root)
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.image.env.iter().cloned())
            .envs(environment.iter().cloned());
        command
    }
}

fn mount(how: &[&str], what: &Path, place: &Path) -> anyhow::Result<()> {
    let mut arguments = how.to_vec();
    let (what, place) = (what.to_string_lossy(), place.to_string_lossy());
    arguments.extend([&*what, &*place]);
    run("mount", &arguments)
}

fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = std::process::Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// The relay as `tests/run build` makes it.
pub(super) fn relay_program() -> anyhow::Result<PathBuf> {
    let beside = match std::env::var_os("INSTAR_BIN") {
        Some(instar) => PathBuf::from(instar).with_file_name("threadline-relay"),
        None => std::env::current_exe()?.parent().context("a folder")?.join("../../release/threadline-relay"),
    };
    beside
        .canonicalize()
        .with_context(|| format!("{}: cargo build --release -p threadline-relay", beside.display()))
}

/// Starts what the unit starts, with its folders below `dir`, after its check; returns when it has said READY.
pub(super) async fn service(unit: &Unit, dir: &Path) -> anyhow::Result<Started> {
    let state = dir.join("state");
    let program = relay_program()?;
    let place = |text: &str| {
        let text = text.replace("/usr/local/bin/threadline-relay", &program.to_string_lossy());
        let text =
            text.replace("/etc/threadline-relay/relay.toml", &super::configuration().to_string_lossy());
        text.replace("/var/lib/threadline-relay", &state.to_string_lossy())
    };
    let command = |line: &str| {
        let line = place(line);
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).env_clear();
        for (name, value) in unit.all("Environment").iter().filter_map(|pair| pair.split_once('=')) {
            command.env(name, place(value));
        }
        command
    };
    let check = command(unit.service("ExecStartPre")).output().await?;
    ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));

    let path = dir.join("notify");
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path)?;
    let mut start = command(unit.service("ExecStart"));
    start.env("NOTIFY_SOCKET", path.as_os_str()).env("WATCHDOG_USEC", super::watchdog_microseconds(unit));
    let mut started = Started::new(start, &dir.join("service.log"))?;
    let mut said = [0; 512];
    let length = tokio::time::timeout(Duration::from_secs(20), socket.recv(&mut said)).await??;
    ensure!(said[..length].starts_with(b"READY=1\n"), "{}", said[..length].escape_ascii());
    started.manager = Some(socket);
    Ok(started)
}

/// Descriptors that the files ask for, or fewer where this machine has fewer.
pub(super) fn open_files() -> u64 {
    const ASKED: u64 = 65536;
    rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .maximum
        .map_or(ASKED, |most| most.min(ASKED))
}

/// Gives this machine one more address.
pub(super) fn address(ip: IpAddr) -> anyhow::Result<()> {
    run("ip", &["address", "add", &format!("{ip}/32"), "dev", "lo"])
}

/// Gives names to addresses, in this namespace only.
pub(super) fn hosts(dir: &Path, names: &[(IpAddr, &str)]) -> anyhow::Result<()> {
    let lines = names.iter().map(|(ip, name)| format!("{ip} {name}\n"));
    let path = dir.join("hosts");
    std::fs::write(&path, lines.chain(["127.0.0.1 localhost\n".to_owned()]).collect::<String>())?;
    mount(&["--bind"], &path, Path::new("/etc/hosts"))
}

pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output =
        std::process::Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    Ok(())
}
