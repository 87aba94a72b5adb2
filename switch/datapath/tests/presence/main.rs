//! Our station's addresses on a segment: claimed, leased and learnt, in memory and virtual time.
//!
//! Frames are made and read by pnet; each case is named after what its RFC requires.

mod claim;
mod craft;
mod dad;
mod lab;
mod lease;
mod props;
mod routers;
mod shown;
