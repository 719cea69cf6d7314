//! A replication connection: a server connection of its own, to which the front copies bytes both ways. Network threads.

use super::front::Front;
use super::opening::{self, Opening};
use crate::login::{self, Login};
use crate::wire::message::Report;
use crate::wire::startup::Replication;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};

/// Replication connections at once. They are few by nature: a standby, a backup, a stream of changes each.
const MOST: u32 = 100;

/// Serves the client until either side ends.
///
/// # Errors
/// When there is no server connection for it; the client has been told only that it is authenticated.
pub async fn serve<S>(front: &Arc<Front>, stream: &mut S, login: &Login) -> Result<(), login::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _place = Place::take(front)?;
    let settings = front.bridge.settings();
    let message = &login.message;
    let kind: &[u8] = if message.replication == Replication::Database { b"database" } else { b"true" };
    let mut parameters: Vec<(&[u8], &[u8])> = vec![(b"replication", kind)];
    if let Some(options) = &message.options {
        parameters.push((b"options", options));
    }
    parameters.extend(message.settings.iter().map(|(name, value)| (&name[..], &value[..])));
    let opening = Opening {
        role: &message.user,
        database: &message.database,
        credential: login.credential.as_ref(),
        parameters: &parameters,
        replication: message.replication,
        only_let_in: true,
        door: &settings.pooler.door,
        system_user: &front.system_user,
        limit: settings.pooler.server_connect_timeout,
    };
    let mut line = opening::open(&opening, &front.questions).await.map_err(|error| match error {
        opening::Error::Server(code, text) => Report::fatal(&code, text),
        error => Report::fatal("08006", error.to_string()),
    })?;
    tokio::select! {
        () = front.bridge.stop().cancelled_owned() => {}
        _ = copy_bidirectional(stream, &mut line) => {}
    }
    Ok(())
}

struct Place<'a>(&'a Front);

impl<'a> Place<'a> {
    fn take(front: &'a Front) -> Result<Self, Report> {
        let place = Self(front);
        if front.shared.header.replications.fetch_add(1, AcqRel) >= MOST {
            return Err(Report::fatal("53300", "sorry, too many clients already")
                .with_detail(format!("The pooler serves at most {MOST} replication connections.")));
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.shared.header.replications.fetch_sub(1, AcqRel);
    }
}
