//! From the kernel's first process to a running workload.

use std::os::fd::{AsRawFd, IntoRawFd};

use crate::agent::{Agent, Signals, Unsent};
use crate::cgroup::Cgroup;
use crate::console;
use crate::disks::{self, make_folder};
use crate::etc_files::EtcFiles;
use crate::frames::Receiver;
use crate::identity::Seats;
use crate::messages::{BootConfig, Volume};
use crate::modules;
use crate::network;
use crate::output::Output;
use crate::port::{self, Port};
use crate::poweroff;
use crate::session::Freeze;
use crate::sys::{self, NANOS_PER_SECOND};
use crate::volumes::{self, Mounted};
use crate::vsock::{self, Socket};
use crate::workload::{Manner, Workload};

const AGENT_PORT: &str = "ramet.agent";
const OUTPUT_PORT: &str = "ramet.output";
/// The same of a vsock; `ramet.wire.vsock` has them too.
const AGENT_VSOCK_PORT: u32 = 1024;
const OUTPUT_VSOCK_PORT: u32 = 1025;
/// How many disks every guest has; volumes are behind them, for a VMM that knows no serials.
const DISK_COUNT: usize = 3;
/// How long a device may take to appear after its driver was loaded.
const DEVICE_TIMEOUT_S: u64 = 20;
const DEVICE_POLL_MS: i32 = 5;
/// Open files of the workload: what a process gets, and what it may raise that to.
const FILES_SOFT: u64 = 65_536;
const FILES_HARD: u64 = 1_048_576;

/// Boots the guest and starts its workload. Errors are reasons, for the console.
pub fn boot() -> Result<Agent, String> {
    mount_kernel_file_systems()?;
    poweroff::learn_the_way();
    let signals = prepare_process()?;
    modules::load_all()?;
    let has_vsock = vsock::is_there();
    let config = disks::read_config(&wait_for_disk("config", 2, has_vsock)?)?;
    if config.overlay != "disk" {
        return Err(format!("no overlay of kind {}", config.overlay));
    }
    let files = EtcFiles::create().map_err(named("the files for /etc"))?;
    let root = wait_for_disk("root", 0, has_vsock)?;
    let overlay = wait_for_disk("overlay", 1, has_vsock)?;
    let parts = disks::split(&overlay, &config.overlay_parts).map_err(named("the overlay's parts"))?;
    let mut mounts = Vec::new();
    let volumes = mount_volumes(&config, &parts, has_vsock, &mut mounts)?;
    let old_root = disks::enter_root(&root, &parts[0], mounts).map_err(|error| error.to_string())?;
    volumes::bind_all(volumes)?;
    disks::furnish_dev().map_err(named("/dev"))?;
    files.bind().map_err(|error| error.to_string())?;
    let cgroup = Cgroup::create().map_err(named("the workload's cgroup"))?;
    let random = sys::open("/dev/urandom", libc::O_WRONLY).map_err(named("/dev/urandom"))?;
    let seats = Seats { files, random };
    network::start_loopback().map_err(named("network"))?;
    seats.take_on(&config.identity).map_err(|failure| failure.to_string())?;
    let (agent_port, output_port) = if has_vsock {
        (listen(AGENT_VSOCK_PORT)?, listen(OUTPUT_VSOCK_PORT)?)
    } else {
        (open_port(AGENT_PORT)?, open_port(OUTPUT_PORT)?)
    };
    let mut agent = Agent {
        port: agent_port,
        receiver: Receiver::of_host_frames(),
        unsent: Unsent::default(),
        greeted: false,
        execs: Vec::new(),
        syncs: Vec::new(),
        freeze: Freeze::default(),
        workload: Workload::starting(),
        manner: Manner::of(&config),
        cgroup,
        seats,
        kill_at_ns: None,
        signals,
        output: None,
        old_root,
    };
    start_workload(&mut agent, &config, output_port)?;
    Ok(agent)
}

/// Mounts the volumes beside the root; to be bound into it when it has been entered.
fn mount_volumes(
    config: &BootConfig,
    parts: &[String],
    has_vsock: bool,
    mounts: &mut Vec<String>,
) -> Result<Vec<Mounted>, String> {
    let mount = |(index, volume): (usize, &Volume)| {
        let device = wait_for_disk(&format!("volume{index}"), DISK_COUNT + index, has_vsock)?;
        let part = match volume.overlay_part {
            None => None,
            // The first part is the root's.
            Some(part) => Some(parts.get(part + 1).ok_or_else(|| format!("there is no part {part}"))?),
        };
        volumes::mount(index, volume, &device, part.map(String::as_str), mounts)
            .map_err(named(&format!("volume {}", volume.path)))
    };
    config.volumes.iter().enumerate().map(mount).collect()
}

fn start_workload(agent: &mut Agent, config: &BootConfig, output_port: Port) -> Result<(), String> {
    let command = agent.manner.command(&config.argv, Default::default(), None, None);
    let command = command.map_err(|refused| refused.message)?;
    let (output, end) = Output::new(output_port, command.uid()).map_err(named("output"))?;
    agent.output = Some(output);
    agent.workload.start(&command, &config.cwd, &end, agent.cgroup.procs())?;
    if agent.workload.pid.is_some() {
        console::print("ready");
    }
    Ok(())
}

fn mount_kernel_file_systems() -> Result<(), String> {
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    for (folder, kind, flags, options) in [
        ("/dev", "devtmpfs", libc::MS_NOSUID, "mode=755"),
        ("/proc", "proc", flags | libc::MS_NODEV, ""),
        ("/sys", "sysfs", flags | libc::MS_NODEV, ""),
    ] {
        make_folder(folder).map_err(named(folder))?;
        let mounted = sys::mount(kind, folder, kind, flags, options);
        // The kernel may have mounted /dev by itself (CONFIG_DEVTMPFS_MOUNT).
        if mounted.as_ref().is_err_and(|error| error.raw_os_error() != Some(libc::EBUSY)) {
            mounted.map_err(named(folder))?;
        }
    }
    Ok(())
}

fn prepare_process() -> Result<Signals, String> {
    // 0, 1 and 2 must be taken, or a pipe would become some child's stdin by accident.
    loop {
        let fd = sys::open("/dev/null", libc::O_RDWR).map_err(named("/dev/null"))?;
        if fd.as_raw_fd() > 2 {
            break;
        }
        let _ = fd.into_raw_fd();
    }
    console::keep(sys::open("/dev/console", libc::O_WRONLY | libc::O_NOCTTY).map_err(named("console"))?);
    let limit = libc::rlimit { rlim_cur: FILES_SOFT, rlim_max: FILES_HARD };
    // SAFETY: a live rlimit; integers.
    unsafe {
        sys::check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit)).map_err(named("rlimit"))?;
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    Ok(Signals {
        children: sys::signal_fd(libc::SIGCHLD).map_err(named("signalfd"))?,
        io: sys::signal_fd(libc::SIGIO).map_err(named("signalfd"))?,
    })
}

fn open_port(name: &str) -> Result<Port, String> {
    let path = wait_for(name, || port::find(name))?;
    Port::open(&path).map_err(named(name))
}

fn listen(port: u32) -> Result<Port, String> {
    Socket::listen(port).map(Port::Socket).map_err(|error| format!("vsock port {port}: {error}"))
}

/// A VMM with a vsock may know no serials; its disks are all there when their driver is.
fn wait_for_disk(name: &str, place: usize, has_vsock: bool) -> Result<String, String> {
    let place = Some(place).filter(|_| has_vsock);
    wait_for(&format!("disk {name}"), || disks::find(name).or_else(|| disks::at(place?)))
}

fn wait_for<T>(what: &str, find: impl Fn() -> Option<T>) -> Result<T, String> {
    let until_ns = sys::monotonic_ns() + DEVICE_TIMEOUT_S * NANOS_PER_SECOND;
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if sys::monotonic_ns() >= until_ns {
            return Err(format!("there is no {what}"));
        }
        sys::poll(&mut [], Some(DEVICE_POLL_MS)).map_err(named("poll"))?;
    }
}

fn named(what: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}
