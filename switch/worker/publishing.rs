//! Ports of the host's that lead to containers.

use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;
use nat::{Protocol, Zone};
use relay::{Published, Stock, Supplies};

use crate::command::Command;
use crate::control::{Publication, PublishId};
use crate::switch::{PATIENCE, Switch};

/// Times the workers are asked to give up a UDP port: the first time one of them may just be sending on a
/// socket another one gives up.
const TAKING_BACK: usize = 3;

impl Switch {
    /// Binds the host socket in the calling thread's namespace and starts serving it.
    ///
    /// # Errors
    ///
    /// As `bind(2)`: the address is in use, is not the host's, or needs privilege.
    pub fn publish(&self, publication: Publication) -> io::Result<PublishId> {
        let made = self.publish_all(vec![publication]).map_err(|(_, error)| error)?;
        made.first().copied().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The same for many at once, all of them or none: the workers are asked once, not for each.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish), with the place of the first that could not be had.
    pub fn publish_all(
        &self,
        publications: Vec<Publication>,
    ) -> Result<Vec<PublishId>, (usize, io::Error)> {
        let bind = |(place, publication): (usize, Publication)| {
            self.bind(&relay::Publication {
                zone: Zone(publication.network.0),
                port: publication.port,
                protocol: publication.protocol,
                listen: publication.listen,
                to: publication.to,
                to_port: publication.to_port,
                splice: publication.splice,
            })
            .map_err(|error| (place, error))
        };
        let bound: Vec<_> =
            publications.into_iter().enumerate().map(bind).collect::<Result<_, _>>()?;
        let mut state = self.state();
        let mut shares: Vec<_> = self.workers.iter().map(|_| (Vec::new(), Vec::new())).collect();
        let mut ids = Vec::with_capacity(bound.len());
        for published in bound {
            let id = PublishId(state.next_publish);
            state.next_publish += 1;
            let (own, share) = &mut shares[id.0 as usize % self.workers.len()];
            own.push(id);
            share.push(published);
            ids.push(id);
        }
        let mut outcome = Ok(());
        for (worker, (own, published)) in shares.into_iter().enumerate() {
            if published.is_empty() {
                continue;
            }
            let (reply, answer) = bounded(1);
            self.workers[worker].tell(Command::Publish { published, reply });
            match answer.recv_timeout(PATIENCE).map_err(io::Error::other).flatten() {
                Ok(keys) => {
                    let named = own.into_iter().zip(keys.into_iter().map(|key| (worker, key)));
                    state.published.extend(named);
                }
                Err(error) => outcome = outcome.and(Err((0, error))),
            }
        }
        drop(state);
        if outcome.is_err() {
            self.unpublish_all(&ids);
        }
        outcome.map(|()| ids)
    }

    /// Binds a host socket. A UDP port that a container's mapping holds is taken back from it.
    fn bind(&self, publication: &relay::Publication) -> io::Result<Published> {
        let mut bound = Published::bind(publication.clone());
        for _ in 0..TAKING_BACK {
            let in_use = matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
            if !in_use || publication.protocol != Protocol::Udp {
                break;
            }
            let (v4, port) = (publication.listen.is_ipv4(), publication.listen.port());
            self.ask_all(|_, done| Some(Command::GiveUpPort { v4, port, done }))?;
            bound = Published::bind(publication.clone());
        }
        bound
    }

    /// A stock of sockets inside a container's namespace, for [`Publication::splice`], made while
    /// the caller waits: [`netns::SocketMaker::make`] says how long. Keeps
    /// the namespace: to be dropped when the container ends.
    ///
    /// # Errors
    ///
    /// The thread that fills stocks cannot be made.
    pub fn stock(&self, maker: netns::SocketMaker, v4: bool, v6: bool) -> io::Result<Arc<Stock>> {
        if self.supplies.get().is_none() {
            let (supplies, orders) = Supplies::new();
            // Of two made at once, the one that is not kept ends for want of an asker.
            thread::Builder::new()
                .name("sockets".into())
                .spawn(move || relay::keep_filled(&orders))?;
            let _ = self.supplies.set(supplies);
        }
        let supplies = self.supplies.get().ok_or(io::ErrorKind::NotFound)?;
        Ok(supplies.stock(maker, v4, v6))
    }

    /// Stops listening. TCP connections that came by it stay until they end.
    pub fn unpublish(&self, id: PublishId) {
        self.unpublish_all(&[id]);
    }

    /// The same for many at once.
    pub fn unpublish_all(&self, ids: &[PublishId]) {
        let mut shares = vec![Vec::new(); self.workers.len()];
        let mut state = self.state();
        for (worker, key) in ids.iter().filter_map(|id| state.published.remove(id)) {
            shares[worker].push(key);
        }
        drop(state);
        let mut shares = shares.into_iter();
        // As for a network.
        let _ = self.ask_all(|_, done| {
            let keys = shares.next().filter(|keys| !keys.is_empty())?;
            Some(Command::Unpublish { keys, done })
        });
    }
}
