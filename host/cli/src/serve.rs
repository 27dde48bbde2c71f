//! `donjon serve`.

use std::env;
use std::time::Duration;

use donjon_monitor::{NetMode, Protocol, Publish, RunOptions, Secret};

use crate::{
    args::ServeArgs,
    cache::{cache, keep, temporary},
    failure::Failure,
    run,
    site::Site,
    ui,
};

pub fn serve(args: &ServeArgs) -> Result<u8, Failure> {
    let cache = cache();
    // One place for each site, so that the next start finds what has not changed.
    let place = cache.clone().map_or_else(|| temporary(&env::temp_dir()), Ok)?;
    let mut site = Site::load(args.dir.as_deref(), &args.site, cache.as_deref(), &place, |_| Ok(place.clone()))?;
    site.compress = args.compress.unwrap_or(site.compress);
    if let Some(memory) = args.engine.memory {
        site.holds("--memory", memory, |mib| format!("`--memory {mib}M`"))?;
    }
    let image = place.join(format!("{}-{}.img", site.name, site.key()?));
    let (made, _held) = keep(&image, || site.write(&image))?;
    let publish = publish(args, &site);
    if args.json {
        donjon_monitor::out!("{}", made.json(&site));
    } else {
        donjon_monitor::say!("donjon: {}", made.text(&site));
        urls(&site, &publish);
    }
    let options = RunOptions {
        engine: run::engine(&args.engine),
        memory: args.engine.memory,
        net: args.engine.net.clone(),
        publish,
        secrets: secrets(args, &site),
        stop_timeout: args.stop_timeout.map(Duration::from_secs),
        verbose: args.verbose,
        starting: ui::io_is_terminal().then_some(ui::starting),
        ..RunOptions::default()
    };
    // The content is in the image; the server's life long nobody needs it here.
    drop(site);
    run::to_the_end(&image, &options)
}

/// What the user says, and for the other secrets the files that the options name.
fn secrets(args: &ServeArgs, site: &Site) -> Vec<Secret> {
    let mut out = args.secret.clone();
    for (name, file) in &site.prepared.secrets {
        if let Some(file) = file
            && !args.secret.iter().any(|s| s.name == *name)
        {
            out.push(Secret { name: name.clone(), file: file.clone() });
        }
    }
    out
}

/// What the user says, or the ports that one tries first.
fn publish(args: &ServeArgs, site: &Site) -> Vec<Publish> {
    if !args.publish.is_empty() || args.engine.net != NetMode::User {
        return args.publish.clone();
    }
    let local = |host: u16, guest| Publish { host: ([127, 0, 0, 1], host).into(), guest, protocol: Protocol::Tcp };
    site.usual_ports().map(|(host, guest)| local(host, guest)).collect()
}

fn urls(site: &Site, publish: &[Publish]) {
    let config = &site.prepared.config;
    for (scheme, port) in [("http", config.http), ("https", config.https)] {
        for p in publish.iter().filter(|p| Some(p.guest) == port && p.host.port() != 0) {
            donjon_monitor::say!("donjon: {scheme}://{}/", p.host);
        }
    }
}
