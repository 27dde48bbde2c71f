//! The guest's network device as the engines see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use donjon_abi::boot;
use donjon_image::Manifest;

use crate::error::Error;
use crate::filter::kernel::KernelFilter;
use crate::filter::rules::Rules;
use crate::filter::{Filter, report};
use crate::jail;
use crate::options::{NetMode, Protection, RunOptions, TapOptions};
use crate::reactor::{Reactor, Ready, Token};
use crate::relay::Relay;
use crate::signals::Signals;
use crate::source::Source;
use crate::tap;
use crate::usernet::device::Device;
use crate::usernet::{Prepared, UserNet, Wire};

/// A device that is open, for a guest that has not started.
#[derive(Debug)]
pub(crate) struct Link {
    guest: Option<OwnedFd>,
    boot: Option<boot::Net>,
    end: End,
    /// Tell at the end what the filter has kept from the guest, too.
    verbose: bool,
}

/// The monitor's end of a device.
#[derive(Debug)]
enum End {
    None,
    User(Box<Prepared>),
    /// The kernel filters; frames do not pass through the monitor.
    Kernel(KernelFilter),
    /// The filter is on its way to the kernel.
    Undecided(Box<Undecided>),
    Relay(Box<(Device, OwnedFd, Filter)>),
    /// For measurements: nobody filters.
    Bare,
}

/// A TAP whose filter is on its way to the kernel, and what it takes for the monitor to filter instead.
#[derive(Debug)]
struct Undecided {
    filter: KernelFilter,
    tap: OwnedFd,
    device: Device,
    /// What the guest gets instead of the TAP if the kernel turns out not to filter.
    other: OwnedFd,
    rules: Rules,
    name: String,
    /// Say so then.
    tell: bool,
}

/// Which descriptor is the guest's device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// [`Link::guest_fd`], as it was when the link was opened.
    First,
    /// [`Link::other_fd`] of that time.
    Other,
}

impl Link {
    /// Opens what the options ask for. `wire` is how frames that the monitor passes on go over the guest's descriptor. Whoever may use the device must wait for
    /// [`Self::decide`].
    pub fn open(options: &RunOptions, manifest: &Manifest, wire: Wire) -> Result<Link, Error> {
        check_publish(options)?;
        let verbose = options.verbose;
        match &options.net {
            NetMode::None => Ok(Link { guest: None, boot: None, end: End::None, verbose }),
            // Nothing could pass: then there is no device.
            NetMode::User if silent(options, manifest) => Ok(Link { guest: None, boot: None, end: End::None, verbose }),
            NetMode::Tap(t) => {
                let boot = tap::boot_net(t);
                let (guest, end) = filtered_tap(options, manifest, t, &boot, wire)?;
                Ok(Link { guest, boot: Some(boot), end, verbose })
            }
            NetMode::User => {
                let (prepared, fd) = Prepared::open(options, manifest, wire)?;
                Ok(Link { guest: Some(fd), boot: Some(Prepared::boot(wire)), end: End::User(prepared.into()), verbose })
            }
        }
    }

    /// Waits until somebody filters the frames: the kernel, on a TAP of the guest's own, or the monitor. Until then the guest must not run.
    pub fn decide(&mut self) -> Result<Choice, Error> {
        let undecided = match std::mem::replace(&mut self.end, End::None) {
            End::Undecided(undecided) => *undecided,
            decided => {
                self.end = decided;
                return Ok(Choice::First);
            }
        };
        let Undecided { mut filter, tap, device, other, rules, name, tell } = undecided;
        match filter.wait() {
            Ok(()) => {
                (self.guest, self.end) = (Some(tap), End::Kernel(filter));
                Ok(Choice::First)
            }
            Err(e) => {
                self.guest = Some(other);
                self.end = through_the_monitor(tap, device, rules, &name, &e, tell)?;
                Ok(Choice::Other)
            }
        }
    }

    /// The descriptor from which the guest reads frames.
    pub fn guest_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.end {
            End::Undecided(undecided) => Some(undecided.tap.as_fd()),
            _ => self.guest.as_ref().map(AsFd::as_fd),
        }
    }

    /// The descriptor that [`Self::decide`] may choose instead.
    pub fn other_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.end {
            End::Undecided(undecided) => Some(undecided.other.as_fd()),
            _ => None,
        }
    }

    /// Whether that descriptor is a TAP device's own.
    pub fn is_tap(&self) -> bool {
        matches!(self.end, End::Kernel(_) | End::Bare)
    }

    /// The descriptor that the guest's process keeps open, so that the filter is there as long as it is.
    pub fn filter_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.end {
            End::Kernel(filter) => filter.hold(),
            End::Undecided(undecided) => undecided.filter.hold(),
            _ => None,
        }
    }

    /// The jail of the process that keeps the filter in the kernel, if there is one.
    pub fn describe(&self) -> Option<jail::Report> {
        matches!(self.end, End::Kernel(_)).then(jail::describe_keeper)
    }

    /// What the monitor still has to do with the network, or, before it is decided, may have to do.
    pub fn needs(&self) -> jail::Network {
        match &self.end {
            End::None | End::Kernel(_) | End::Bare => jail::Network::None,
            End::Relay(_) | End::Undecided(_) => jail::Network::Frames,
            End::User(p) => p.needs(),
        }
    }

    /// What the guest is told about it.
    pub fn boot(&self) -> Option<boot::Net> {
        self.boot
    }

    /// The monitor's part of the work, once the guest runs. Gives up the guest's descriptor. It has been decided who filters.
    pub fn into_running(self, base: Token, reactor: &Reactor) -> Result<RunningLink, Error> {
        let end = match self.end {
            End::None | End::Bare => RunningEnd::None,
            End::User(p) => RunningEnd::User(UserNet::new(*p, base, reactor)?.into()),
            End::Kernel(filter) => RunningEnd::Kernel(filter),
            End::Relay(parts) => {
                let (device, tap, filter) = *parts;
                RunningEnd::Relay(Relay::new(device, tap, filter, base, reactor)?.into())
            }
            End::Undecided(_) => unreachable!("it has been decided"),
        };
        Ok(RunningLink { end, verbose: self.verbose })
    }
}

/// A TAP device whose frames are filtered: by the kernel where it can, else by the monitor in between. The first value is the guest's, if that is decided.
fn filtered_tap(
    options: &RunOptions,
    manifest: &Manifest,
    tap: &TapOptions,
    boot: &boot::Net,
    wire: Wire,
) -> Result<(Option<OwnedFd>, End), Error> {
    let rules = Rules::new(manifest, boot, options);
    let failed = |source| Error::Tap { name: tap.name.clone(), source };
    // Opened first: a device that is another guest's must not get our filter.
    let fd = tap::open(tap).map_err(failed)?;
    let number = tap::number(&tap.name).map_err(failed)?;
    if options.without.contains(&Protection::Frames) {
        return Ok((Some(fd), End::Bare));
    }
    let attached = if options.relay_tap {
        Err(std::io::Error::other("the monitor was told to filter itself"))
    } else {
        KernelFilter::attach(&rules, number, fd.as_fd(), options.monitor_without_rule)
    };
    let (device, other) = Device::pair(wire).map_err(Error::host("cannot create a socket pair"))?;
    let name = tap.name.clone();
    // An ordinary user's TAP is never filtered by the kernel; root's is, but where something is wrong.
    let tell = options.verbose || (rustix::process::geteuid().is_root() && !options.relay_tap);
    match attached {
        Ok(filter) => {
            Ok((None, End::Undecided(Undecided { filter, tap: fd, device, other, rules, name, tell }.into())))
        }
        Err(e) => Ok((Some(other), through_the_monitor(fd, device, rules, &name, &e, tell)?)),
    }
}

/// The monitor's end where the kernel does not filter, for the reason `e`.
fn through_the_monitor(
    tap: OwnedFd,
    device: Device,
    rules: Rules,
    name: &str,
    e: &std::io::Error,
    tell: bool,
) -> Result<End, Error> {
    if tell {
        crate::say!("donjon: the kernel does not filter on {name} ({e}): frames pass through the monitor");
    }
    if device.wire == Wire::Plain {
        tap::complete_frames(&tap).map_err(|source| Error::Tap { name: name.into(), source })?;
    }
    Ok(End::Relay((device, tap, Filter::new(rules)).into()))
}

/// Whether the image declares no network at all and the operator opens none.
fn silent(options: &RunOptions, manifest: &Manifest) -> bool {
    let declared = manifest.listen.is_empty() && manifest.egress.is_empty();
    declared && options.publish.is_empty() && !options.listen_any && !options.egress_any
}

/// Ports are published by user-mode networking only.
fn check_publish(options: &RunOptions) -> Result<(), Error> {
    if options.net != NetMode::User && !options.publish.is_empty() {
        return Err(Error::Usage {
            what: "-p publishes ports of user-mode networking, which is off".into(),
            hint: "with --net tap the guest is reached at its own address; leave -p out",
        });
    }
    Ok(())
}

/// The monitor's part of a device.
#[derive(Debug)]
pub(crate) struct RunningLink {
    end: RunningEnd,
    verbose: bool,
}

#[derive(Debug)]
enum RunningEnd {
    None,
    User(Box<UserNet>),
    Kernel(KernelFilter),
    Relay(Box<Relay>),
}

impl RunningLink {
    /// When [`Self::work`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.end {
            RunningEnd::User(user) => user.deadline(),
            _ => None,
        }
    }

    /// Takes an event. May have something to say.
    pub fn ready(&mut self, ready: Ready, reactor: &Reactor) -> Option<&'static str> {
        match &mut self.end {
            RunningEnd::User(user) => user.ready(ready, reactor),
            RunningEnd::Relay(relay) => return relay.ready(ready, reactor),
            RunningEnd::None | RunningEnd::Kernel(_) => {}
        }
        None
    }

    /// After all events of a round.
    pub fn work(&mut self, reactor: &Reactor) {
        if let RunningEnd::User(user) = &mut self.end {
            user.work(reactor);
        }
    }

    /// Whether a frame is known to have come from the guest.
    pub fn heard(&self) -> bool {
        matches!(&self.end, RunningEnd::User(user) if user.heard())
    }

    /// The guest has ended: what it sent before still goes out, for which there is time until `until` or a signal. Says what was dropped.
    pub fn finish(&mut self, reactor: &Reactor, signals: &Signals, until: Instant) -> Vec<String> {
        match &mut self.end {
            RunningEnd::User(user) => {
                user.finish(reactor, signals, until);
                report(|way| user.dropped(way), self.verbose)
            }
            RunningEnd::Relay(relay) => {
                relay.finish();
                report(|way| relay.dropped(way), self.verbose)
            }
            RunningEnd::Kernel(filter) => {
                let mut said = report(|way| filter.dropped(way), self.verbose);
                if !filter.finish() {
                    said.push("the filter is still on the TAP device; the next run replaces it".into());
                }
                said
            }
            RunningEnd::None => Vec::new(),
        }
    }
}

/// Arguments (the program's name first) and environment of the guest.
pub(crate) fn strings(source: &Source, options: &RunOptions) -> Result<(Vec<String>, Vec<String>), Error> {
    let mut args = vec![source.manifest.name.clone()];
    args.extend(options.args.as_ref().unwrap_or(&source.manifest.args).iter().cloned());
    let mut env: Vec<String> = Vec::new();
    for entry in source.manifest.env.iter().chain(&options.env) {
        let Some((name, _)) = entry.split_once('=').filter(|(n, _)| !n.is_empty()) else {
            return Err(Error::Usage { what: format!("\"{entry}\" is not NAME=VALUE"), hint: "write -e NAME=VALUE" });
        };
        env.retain(|e| e.split_once('=').is_none_or(|(n, _)| n != name));
        env.push(entry.clone());
    }
    if let Some(bad) = args.iter().chain(&env).find(|s| s.contains('\0')) {
        return Err(Error::Usage { what: format!("{bad:?} contains a NUL"), hint: "arguments cannot contain one" });
    }
    Ok((args, env))
}
