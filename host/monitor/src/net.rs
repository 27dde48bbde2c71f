//! The guest's network device as the engines see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use donjon_abi::boot;
use donjon_image::Manifest;

use crate::error::Error;
use crate::options::{NetMode, RunOptions};
use crate::reactor::{Reactor, Ready};
use crate::source::Source;

/// A device that is open, for a guest that has not started.
#[derive(Debug)]
pub(crate) struct Link {
    guest: Option<OwnedFd>,
    boot: Option<boot::Net>,
}

impl Link {
    /// Opens what the options ask for.
    pub fn open(options: &RunOptions, manifest: &Manifest) -> Result<Link, Error> {
        let _ = manifest;
        match &options.net {
            NetMode::None => Ok(Link { guest: None, boot: None }),
            NetMode::Tap(_) | NetMode::User => Ok(Link { guest: None, boot: None }),
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
    pub fn into_running(self, reactor: &Reactor) -> Result<RunningLink, Error> {
        let _ = reactor;
        Ok(RunningLink {})
    }
}

/// The monitor's part of a device.
#[derive(Debug)]
pub(crate) struct RunningLink {}

impl RunningLink {
    /// When [`Self::work`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Takes an event.
    pub fn ready(&mut self, ready: Ready, reactor: &Reactor) {
        let _ = (ready, reactor);
    }

    /// After all events of a round.
    pub fn work(&mut self, reactor: &Reactor) {
        let _ = reactor;
    }

    /// The guest has ended: what it sent before still goes out.
    pub fn finish(&mut self, reactor: &Reactor) {
        let _ = reactor;
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
