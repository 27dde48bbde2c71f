//! QEMU's command line.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use crate::error::Error;
use crate::net::Link;
use crate::options::{Machine, NetMode, QemuOptions, RunOptions, TapOptions};
use crate::source::Source;
use crate::usernet::policy::{DNS4, DNS6, GATEWAY4, GATEWAY6, GUEST4, GUEST6, PREFIX4, PREFIX6};

/// Longest command line that the shim reads, bytes.
const APPEND_MAX: usize = 4095;
/// Least memory that an image boots in, bytes: below it the shim's own page tables and buffers do not fit.
const MEMORY_LEAST: u64 = 8 << 20;

/// What QEMU's own filter refuses: old calls, changes of user, new programs, changes of scheduling.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Descriptors that QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fds<'a> {
    /// Where the guest's exit status goes.
    pub status: RawFd,
    /// The image.
    pub image: RawFd,
    /// Secrets by name.
    pub secrets: &'a [(&'a str, OwnedFd)],
}

/// QEMU's arguments for this guest.
pub(super) fn arguments(
    source: &Source,
    options: &RunOptions,
    qemu: &QemuOptions,
    fds: Fds<'_>,
    link: &Link,
) -> Result<Vec<String>, Error> {
    let memory = options.memory.unwrap_or(source.manifest.memory);
    if memory < MEMORY_LEAST {
        return Err(Error::Usage {
            what: format!(
                "{} KiB of memory are too little: a virtual machine needs at least {} KiB",
                memory / 1024,
                MEMORY_LEAST / 1024
            ),
            hint: "give it more with --memory, or in Donjon.toml",
        });
    }
    let mut out: Vec<String> = Vec::new();
    let mut put = |words: &[&str]| out.extend(words.iter().map(|w| (*w).to_owned()));
    let microvm = qemu.machine == Machine::Microvm;
    // Without ACPI QEMU takes its small firmware, which saves 45 ms; devices are then named on the command line.
    put(&["-machine", if microvm { "microvm,acpi=off" } else { "q35" }]);
    put(&["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", &format!("{}M", memory.div_ceil(1 << 20))]);
    if sandboxed(qemu) {
        put(&["-sandbox", SANDBOX]);
    }
    put(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    if microvm {
        // The shim drives modern virtio only.
        put(&["-global", "virtio-mmio.force-legacy=false"]);
    }
    // The host's entropy; the shim mixes it with the CPU's.
    put(&["-object", "rng-builtin,id=entropy", "-device"]);
    put(&[if microvm { "virtio-rng-device,rng=entropy" } else { "virtio-rng-pci,rng=entropy,disable-legacy=on" }]);
    put(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    put(&["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    put(&["-chardev", &format!("file,id=status,path=/proc/self/fd/{}", fds.status)]);
    put(&["-device", "isa-debugcon,iobase=0xe9,chardev=status"]);
    let device = |mac: [u8; 6]| {
        let [a, b, c, d, e, f] = mac;
        let mac = format!("mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        if microvm {
            format!("virtio-net-device,netdev=n0,{mac}")
        } else {
            format!("virtio-net-pci,netdev=n0,disable-legacy=on,romfile=,{mac}")
        }
    };
    if let (Some(fd), Some(net)) = (link.guest_fd(), link.boot()) {
        let mut device = device(net.mac);
        let kind = if link.is_tap() {
            "tap"
        } else {
            // Through the monitor: each frame is a datagram, of this size at most.
            device += &format!(",host_mtu={}", net.mtu);
            "socket"
        };
        put(&["-netdev", &format!("{kind},id=n0,fd={}", fd.as_raw_fd()), "-device", &device]);
    }
    put(&["-kernel", &format!("/proc/self/fd/{}", fds.image)]);
    out.extend(crate::secrets::fw_cfg(fds.secrets));
    let append = append(source, options, link.guest_fd().is_some())?;
    out.extend(["-append".into(), append]);
    out.extend(qemu.extra.iter().cloned());
    Ok(out)
}

/// Whether QEMU is told to put its own filter on as we want it.
pub(super) fn sandboxed(qemu: &QemuOptions) -> bool {
    !qemu.unconfined && !qemu.extra.iter().any(|a| a == "-sandbox" || a == "--sandbox")
}

/// The files and directories that the user's own arguments name: `-D qemu.log` as much as `-drive file=disk.img,format=raw`. What is named by a property that is none of
/// QEMU's for files counts only if it looks like a path.
pub(super) fn named_files(extra: &[String]) -> Vec<PathBuf> {
    const KEYS: [&str; 7] = ["file", "filename", "path", "mem-path", "logfile", "dir", "romfile"];
    let mut out = Vec::new();
    for (i, argument) in extra.iter().enumerate() {
        // QEMU writes a comma in a value as two.
        for part in argument.replace(",,", "\0").split(',') {
            let part = part.replace('\0', ",");
            let (key, value) = part.split_once('=').unwrap_or(("", &part));
            let whole = part == *argument && i > 0 && extra[i - 1].starts_with('-');
            if whole || KEYS.contains(&key.rsplit('.').next().unwrap_or(key)) || value.contains('/') {
                out.push(PathBuf::from(value));
            }
        }
        if argument == "kvm"
            || argument == "-enable-kvm"
            || argument.contains("accel=kvm")
            || argument.starts_with("kvm,")
        {
            out.push("/dev/kvm".into());
        }
    }
    out
}

/// The guest's command line.
fn append(source: &Source, options: &RunOptions, device: bool) -> Result<String, Error> {
    let mut words: Vec<String> = match &options.net {
        _ if !device => vec!["donjon.ip=none".into(), "donjon.ip6=none".into()],
        NetMode::None => vec!["donjon.ip=none".into(), "donjon.ip6=none".into()],
        NetMode::User => vec![
            format!("donjon.ip={GUEST4}/{PREFIX4}"),
            format!("donjon.gw={GATEWAY4}"),
            format!("donjon.dns={DNS4}"),
            format!("donjon.ip6={GUEST6}/{PREFIX6}"),
            format!("donjon.gw6={GATEWAY6}"),
            format!("donjon.dns6={DNS6}"),
        ],
        NetMode::Tap(t) => tap_words(t),
    };
    for (open, word) in [(options.listen_any, "listen"), (options.egress_any, "egress")] {
        if open {
            words.push(format!("donjon.{word}=any"));
        }
    }
    // The real-time clock has whole seconds.
    if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        words.push(format!("donjon.started={}", now.as_nanos()));
    }
    // The same merge as under the process engine, which also checks the entries.
    crate::net::strings(source, options)?;
    words.extend(options.env.iter().map(|e| quoted(&format!("donjon.env={e}"))));
    if let Some(args) = &options.args {
        words.push("--".into());
        words.extend(args.iter().map(|a| quoted(a)));
    }
    let line = words.join(" ");
    if line.len() > APPEND_MAX {
        return Err(Error::Usage {
            what: format!("arguments and environment take {} bytes, a virtual machine takes {APPEND_MAX}", line.len()),
            hint: "put them into Donjon.toml, or use --engine process",
        });
    }
    Ok(line)
}

fn tap_words(t: &TapOptions) -> Vec<String> {
    let mut words = vec![];
    let v4 = |a: &&IpAddr| a.is_ipv4();
    match t.addresses.iter().find(|(a, _)| a.is_ipv4()) {
        Some((a, prefix)) => words.push(format!("donjon.ip={a}/{prefix}")),
        None => words.push("donjon.ip=dhcp".into()),
    }
    match t.addresses.iter().find(|(a, _)| a.is_ipv6()) {
        Some((a, prefix)) => words.push(format!("donjon.ip6={a}/{prefix}")),
        None => words.push("donjon.ip6=auto".into()),
    }
    words.extend(t.gateways.iter().find(v4).map(|a| format!("donjon.gw={a}")));
    words.extend(t.gateways.iter().find(|a| a.is_ipv6()).map(|a| format!("donjon.gw6={a}")));
    let dns: Vec<String> = t.dns.iter().filter(v4).take(2).map(IpAddr::to_string).collect();
    if !dns.is_empty() {
        words.push(format!("donjon.dns={}", dns.join(",")));
    }
    words.extend(t.dns.iter().find(|a| a.is_ipv6()).map(|a| format!("donjon.dns6={a}")));
    words
}

/// A word as the shim reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '\'');
    if !word.is_empty() && word != "--" && word.chars().all(plain) {
        return word.into();
    }
    let mut out = String::from("\"");
    for c in word.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain=1"), "plain=1");
        assert_eq!(quoted("two words"), "\"two words\"");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("a\"b\\c"), "\"a\\\"b\\\\c\"");
        assert_eq!(quoted("--"), "\"--\"");
    }

    #[test]
    fn files_that_arguments_name_are_found() {
        let named = |words: &str| {
            let extra: Vec<String> = words.split(' ').map(str::to_owned).collect();
            named_files(&extra).iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(named("-D qemu.log -d in_asm"), "qemu.log in_asm");
        assert_eq!(named("-drive file=a,,b.img,if=none,format=raw"), "a,b.img");
        assert_eq!(named("-object memory-backend-file,id=m,mem-path=/dev/shm/m,size=32M"), "/dev/shm/m");
        assert_eq!(named("-blockdev driver=file,node-name=f,file.filename=disk"), "disk");
        assert_eq!(named("-plugin ./count.so,arg=./out"), "./count.so ./out");
        assert_eq!(named("-accel kvm"), "kvm /dev/kvm");
        assert_eq!(named("-cpu max,+avx -m 64"), "64");
    }

    #[test]
    fn tap_addresses_become_words() {
        let t: TapOptions = "tap0,ip=10.0.0.2/24,gw=10.0.0.1,dns=1.1.1.1,dns=2.2.2.2,ip=fd00::2/64".parse().unwrap();
        assert_eq!(
            tap_words(&t).join(" "),
            "donjon.ip=10.0.0.2/24 donjon.ip6=fd00::2/64 donjon.gw=10.0.0.1 donjon.dns=1.1.1.1,2.2.2.2"
        );
        assert_eq!(tap_words(&"tap0".parse().unwrap()).join(" "), "donjon.ip=dhcp donjon.ip6=auto");
    }
}
