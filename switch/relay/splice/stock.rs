//! Sockets of a container's namespace, made ahead of the connections that want them.
//!
//! Entering a namespace costs a thread or a process, too much for each connection and too long for a
//! worker: one thread for all workers makes them by the batch. A batch grows while the demand lasts
//! and shrinks after it. A worker that finds none left relays over the bridge and is not delayed.
//! A stock keeps its namespace: it must be dropped when the container's end is noticed.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use netns::{SocketKind, SocketMaker};

/// Sockets kept while nobody asks, of each family.
const FEW: u16 = 16;

/// Most sockets of one batch, which bounds a family's shelf to half as many more.
const MANY: u16 = 128;

/// Two batches within this time, and the next is larger; none, and the shelf shrinks.
const BUSY: Duration = Duration::from_secs(5);

/// How long is waited before a namespace that refused sockets is asked again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Stocks that may wait to be filled; what does not fit is asked for at the next connection.
const MAX_ORDERS: usize = 1024;

/// How a published port may be relayed socket to socket.
#[derive(Clone, Debug)]
pub struct Splice {
    /// Sockets of the container's namespace.
    pub stock: Arc<Stock>,
    /// Every client, and not just those of the host's loopback: their addresses are hidden.
    pub everybody: bool,
}

/// A wish for sockets.
#[derive(Debug)]
struct Order {
    stock: Weak<Stock>,
    family: Family,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Where stocks send their wishes; clones lead to the same thread.
#[derive(Clone, Debug)]
pub struct Supplies(SyncSender<Order>);

/// What [`keep_filled`] works from. The thread ends when every [`Supplies`] and stock is gone.
#[derive(Debug)]
pub struct Orders(Receiver<Order>);

impl Supplies {
    /// Both ends; one thread is to run [`keep_filled`].
    #[must_use]
    pub fn new() -> (Self, Orders) {
        let (sender, orders) = sync_channel(MAX_ORDERS);
        (Self(sender), Orders(orders))
    }

    /// A stock of sockets made by `maker`, for a container with addresses of those families. Holds the
    /// first of them already, so that the first client is served as every later one.
    #[must_use]
    pub fn stock(&self, maker: SocketMaker, v4: bool, v6: bool) -> Arc<Stock> {
        let supplies = self.clone();
        let stock = Stock { maker, supplies, v4: Mutex::default(), v6: Mutex::default() };
        for (wanted, family) in [(v4, Family::V4), (v6, Family::V6)] {
            if wanted {
                stock.fill(family);
            }
        }
        Arc::new(stock)
    }
}

/// Unconnected TCP sockets of one namespace.
#[derive(Debug)]
pub struct Stock {
    maker: SocketMaker,
    supplies: Supplies,
    v4: Mutex<Shelf>,
    v6: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    /// Sockets the last batch had; 0 before the first.
    batch: u16,
    filled: Option<Instant>,
    failed: Option<Instant>,
    ordered: bool,
}

impl Stock {
    /// Sockets at hand, of both families.
    #[must_use]
    pub fn at_hand(&self) -> usize {
        self.shelf(Family::V4).sockets.len() + self.shelf(Family::V6).sockets.len()
    }

    /// A socket, if there is one.
    pub(super) fn take(self: &Arc<Self>, v4: bool) -> Option<OwnedFd> {
        let family = if v4 { Family::V4 } else { Family::V6 };
        let mut shelf = self.shelf(family);
        let socket = shelf.sockets.pop();
        if shelf.sockets.len() <= usize::from(shelf.batch / 2) {
            self.order(family, &mut shelf);
        }
        socket
    }

    fn shelf(&self, family: Family) -> MutexGuard<'_, Shelf> {
        let shelf = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        // Nothing that can panic runs under this lock.
        shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(self: &Arc<Self>, family: Family, shelf: &mut Shelf) {
        if shelf.ordered || shelf.failed.is_some_and(|failed| failed.elapsed() < AFTER_FAILURE) {
            return;
        }
        let order = Order { stock: Arc::downgrade(self), family };
        shelf.ordered = match self.supplies.0.try_send(order) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        };
    }

    fn fill(&self, family: Family) {
        let batch = {
            let shelf = self.shelf(family);
            match shelf.filled {
                Some(filled) if filled.elapsed() < BUSY => (shelf.batch * 2).clamp(FEW, MANY),
                _ => FEW,
            }
        };
        let kind = match family {
            Family::V4 => SocketKind::Tcp4,
            Family::V6 => SocketKind::Tcp6,
        };
        // Not under the lock: a worker may come for what is left meanwhile.
        let made = self.maker.make(kind, batch);
        let mut shelf = self.shelf(family);
        shelf.ordered = false;
        match made {
            Ok(sockets) => {
                shelf.sockets.extend(sockets);
                (shelf.batch, shelf.filled, shelf.failed) = (batch, Some(Instant::now()), None);
            }
            // Connections go over the bridge, as they did before there was a stock.
            Err(_) => shelf.failed = Some(Instant::now()),
        }
    }

    /// Closes what nobody has asked for; says whether there may be more later.
    fn shrink(&self) -> bool {
        let mut large = false;
        for family in [Family::V4, Family::V6] {
            let mut shelf = self.shelf(family);
            if shelf.filled.is_some_and(|filled| filled.elapsed() >= BUSY) {
                let few = usize::from(FEW).min(shelf.sockets.len());
                let over = shelf.sockets.split_off(few);
                shelf.batch = shelf.batch.min(FEW);
                drop(shelf);
                drop(over);
            } else {
                large |= shelf.sockets.len() > usize::from(FEW);
            }
        }
        large
    }
}

/// Fills stocks as they ask, until nobody is left to ask. For a thread of its own.
pub fn keep_filled(orders: &Orders) {
    let mut large: Vec<Weak<Stock>> = Vec::new();
    loop {
        let order = if large.is_empty() {
            orders.0.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            orders.0.recv_timeout(BUSY)
        };
        match order {
            Ok(Order { stock, family }) => {
                let Some(held) = stock.upgrade() else { continue };
                held.fill(family);
                if !large.iter().any(|known| known.ptr_eq(&stock)) {
                    large.push(stock);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        large.retain(|stock| stock.upgrade().is_some_and(|stock| stock.shrink()));
    }
}
