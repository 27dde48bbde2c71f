//! The guest's network device as the engines see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use donjon_abi::boot;
use donjon_image::Manifest;

use crate::error::Error;
use crate::options::{NetMode, RunOptions};
use crate::reactor::{Reactor, Ready, Token};
use crate::source::Source;
use crate::tap;
use crate::usernet::{Prepared, UserNet, Wire};

/// A device that is open, for a guest that has not started.
#[derive(Debug)]
pub(crate) struct Link {
    guest: Option<OwnedFd>,
    boot: Option<boot::Net>,
    user: Option<Prepared>,
}

impl Link {
    /// Opens what the options ask for. `wire` is for user-mode networking.
    pub fn open(options: &RunOptions, manifest: &Manifest, wire: Wire) -> Result<Link, Error> {
        check_publish(options)?;
        match &options.net {
            NetMode::None => Ok(Link { guest: None, boot: None, user: None }),
            NetMode::Tap(t) => {
                let fd = tap::open(t).map_err(|source| Error::Tap { name: t.name.clone(), source })?;
                Ok(Link { guest: Some(fd), boot: Some(tap::boot_net(t)), user: None })
            }
            NetMode::User => {
                let (prepared, fd) = Prepared::open(options, manifest, wire)?;
                Ok(Link { guest: Some(fd), boot: Some(Prepared::boot()), user: Some(prepared) })
            }
        }
    }

    /// The descriptor from which the guest reads frames.
    pub fn guest_fd(&self) -> Option<BorrowedFd<'_>> {
        self.guest.as_ref().map(AsFd::as_fd)
    }

    /// What the guest is told about it.
    pub fn boot(&self) -> Option<boot::Net> {
        self.boot
    }

    /// The monitor's part of the work, once the guest runs. Gives up the guest's descriptor.
    pub fn into_running(self, base: Token, reactor: &Reactor) -> Result<RunningLink, Error> {
        let user = self.user.map(|p| UserNet::new(p, base, reactor)).transpose()?;
        Ok(RunningLink { user })
    }
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
    user: Option<UserNet>,
}

impl RunningLink {
    /// When [`Self::work`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.user.as_ref()?.deadline()
    }

    /// Takes an event.
    pub fn ready(&mut self, ready: Ready, reactor: &Reactor) {
        if let Some(user) = &mut self.user {
            user.ready(ready, reactor);
        }
    }

    /// After all events of a round.
    pub fn work(&mut self, reactor: &Reactor) {
        if let Some(user) = &mut self.user {
            user.work(reactor);
        }
    }

    /// The guest has ended: what it sent before still goes out.
    pub fn finish(&mut self, reactor: &Reactor) {
        if let Some(user) = &mut self.user {
            user.finish(reactor);
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
