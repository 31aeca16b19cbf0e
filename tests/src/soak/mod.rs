//! The whole chain for as long as it is told, with churn of every part.
//!
//! ```text
//!  there               here                          middle                        far
//!  three senders       steady, moving, mortal        relay (2 workers, TLS),       near, distant: viewers that
//!  v2, w2, x2 ======== v1, w1, x1                    visitors, strangers           stay, judged packet by packet
//!                      u1 ========================== u2, n2 ====================== n1
//! ```
//!
//! One thread disturbs the chain, event by event, each followed by a wait until everything flows
//! again ([`events`]); another has visitors come and go beside it ([`visits`]); a third looks at
//! memory, descriptors and threads of each process ([`gauge`]). What they found is judged at the
//! end: trends by [`trend`], packets by [`ledger`].
//!
//! What is captured is made of numbered frames of which each byte is known ([`frames`]).

pub mod events;
pub mod frames;
pub mod gauge;
pub mod ledger;
pub mod random;
pub mod report;
pub mod taker;
pub mod trend;
pub mod visits;
pub mod world;
