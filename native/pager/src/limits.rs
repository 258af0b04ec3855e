//! Every limit, with its unit. At a limit we refuse, defer or end a session; nothing grows without one.

use std::time::Duration;

/// The only page size served; a VMM that maps huge pages is refused.
pub const PAGE_BYTES: u64 = 4096;

/// A fault is answered with this much, aligned in the base, so that one fault brings its neighbours.
pub const WINDOW_BYTES: u64 = 64 * 1024;
pub const WINDOW_PAGES: usize = (WINDOW_BYTES / PAGE_BYTES) as usize;

/// Threads that serve faults: one for each core, within these bounds.
pub const WORKERS_MIN: usize = 2;
pub const WORKERS_MAX: usize = 8;

pub const SESSIONS_MAX: usize = 1024;
pub const SESSION_ID_BYTES_MAX: usize = 64;
/// Memory of one guest: 1 TiB.
pub const SESSION_BYTES_MAX: u64 = 1 << 40;

/// Pages that one session sees instead of the base's.
pub const OVERLAY_PAGES_MAX: usize = 16;

/// Bases that no session uses are kept this long, with what the cache has of them, for the next restore.
pub const BASE_LINGER: Duration = Duration::from_secs(60);
pub const BASES_LINGERING_MAX: usize = 16;

/// Content of packed bases that is kept unpacked, unless the command line says otherwise: 1 GiB.
pub const CACHE_BYTES_DEFAULT: usize = 1 << 30;
pub const CACHE_SHARDS_MAX: usize = 16;
/// A cache smaller than this for each shard has fewer shards.
pub const CACHE_SHARD_BYTES_MIN: usize = 1 << 20;

/// Working sets that are kept, and what all of them take; those used longest ago go first.
pub const WORKING_SETS_MAX: usize = 256;
pub const WORKING_SETS_BYTES_MAX: usize = 32 << 20;

/// Working sets are replayed, and memory is completed, in steps of so many windows (512 KiB, about 0.2 ms), after
/// each of which the session's own faults are looked for. In smaller ones, who touches the set in another order
/// is woken for every window, and all of it takes longer.
pub const STEP_WINDOWS: usize = 8;
/// After so many steps it is another session's turn.
pub const STEPS_PER_TURN: usize = 4;

pub const CONTROL_CONNECTIONS_MAX: usize = 32;
pub const REQUEST_LINE_BYTES_MAX: usize = 16 * 1024;

/// From a VMM's connection to its whole handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// The text is parsed anew after each piece, so the number of pieces is bounded as well.
pub const HANDSHAKE_PIECES_MAX: usize = 64;
pub const MAPPINGS_MAX: usize = 256;
/// Highest address of user space (57 bits, five-level page tables).
pub const ADDRESS_MAX: u64 = 1 << 56;

/// Messages taken from a userfaultfd at once; afterwards it is another session's turn.
pub const EVENTS_PER_READ: usize = 64;
/// How often faults are tried again at once while the guest's memory map changes.
pub const AGAIN_TRIES: usize = 16;
/// After that they are tried again this much later.
pub const AGAIN_DELAY: Duration = Duration::from_millis(1);
/// Faults of one session that wait for its memory map; each is a sleeping thread of the VMM.
pub const PENDING_FAULTS_MAX: usize = 4096;

/// Ends of sessions that `stats` still tells of.
pub const RECENT_ENDS_MAX: usize = 32;
/// A unix socket's path, without the terminating zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Most descriptors that one session holds: connection, process, userfaultfd, timer, event, base; or, during its
/// handshake, connection, process and what was sent.
pub const DESCRIPTORS_PER_SESSION: u64 = 6;
/// Descriptors for everything else: control connections, signals, polls, standard streams.
pub const DESCRIPTORS_RESERVED: u64 = 64;
