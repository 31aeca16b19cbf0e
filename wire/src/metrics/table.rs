//! Every metric of the programs, and what it means.

use super::{About, Kind, Metric};

/// The parts of the table, with a title each.
pub const PARTS: &[(&str, &[About])] =
    &[("Relay", relay::ALL), ("Sniffer", sniffer::ALL), ("Both", process::ALL)];

/// A constant for each metric, and the list of them.
macro_rules! metrics {
    ($($constant:ident: $kind:ident $labels:tt $name:literal, $help:literal;)*) => {
        $(#[doc = $help]
        pub const $constant: Metric<{ count!$labels }> = Metric::new($name, Kind::$kind, &$labels, $help);)*

        /// All of this part.
        pub const ALL: &[About] = &[$($constant.about()),*];
    };
}

/// How many labels there are.
macro_rules! count {
    [] => { 0 };
    [$one:literal] => { 1 };
    [$one:literal, $two:literal] => { 2 };
}

/// Metrics of the relay.
pub mod relay {
    use super::*;

    metrics! {
        CONNECTIONS: Gauge ["role"] "ringcast_relay_connections",
            "Connections by role: stranger (no hello yet), sniffer, viewer.";
        CONNECTIONS_LIMIT: Gauge [] "ringcast_relay_connections_limit",
            "Connections that are let in at most (--connections).";
        CONNECTIONS_ACCEPTED: Counter [] "ringcast_relay_connections_accepted_total",
            "Connections that were let in.";
        CONNECTIONS_REFUSED: Counter ["reason"] "ringcast_relay_connections_refused_total",
            "Connections that were not let in, by reason: connections, address (the bounds on them), memory, other.";
        CONNECTIONS_PUSHED_OUT: Counter [] "ringcast_relay_connections_pushed_out_total",
            "Connections that made room for newer ones before they had said hello.";
        AUTHENTICATION_FAILURES: Counter [] "ringcast_relay_authentication_failures_total",
            "Attempts to prove oneself by token or certificate that failed, TLS handshakes that failed among them.";
        HANDSHAKE_FAILURES: Counter ["stage"] "ringcast_relay_handshake_failures_total",
            "Connections that failed before their hello was taken, by stage: tls, http, hello.";
        RECEIVED_BYTES: Counter ["sniffer"] "ringcast_relay_received_bytes_total",
            "Bytes of blocks taken from sniffers of this name.";
        RECEIVED_BLOCKS: Counter ["sniffer"] "ringcast_relay_received_blocks_total",
            "Blocks taken from sniffers of this name.";
        RECEIVED_PACKETS: Counter ["sniffer"] "ringcast_relay_received_packets_total",
            "Packets in blocks taken from sniffers of this name.";
        DUPLICATE_BLOCKS: Counter [] "ringcast_relay_duplicate_blocks_total",
            "Blocks that had come before, sent again after a cut.";
        SENT_BYTES: Counter [] "ringcast_relay_sent_bytes_total",
            "Bytes of blocks given to connections of viewers.";
        SENT_BLOCKS: Counter [] "ringcast_relay_sent_blocks_total",
            "Blocks given to connections of viewers.";
        SENT_PACKETS: Counter [] "ringcast_relay_sent_packets_total",
            "Packets in blocks given to connections of viewers.";
        SKIPPED_PACKETS: Counter ["stage"] "ringcast_relay_skipped_packets_total",
            "Packets skipped, by stage: viewer queue, worker queue, relay memory, viewer away; once for each viewer or worker that misses them.";
        VIEWER_QUEUE_BYTES: Gauge ["viewer", "address"] "ringcast_relay_viewer_queue_bytes",
            "Bytes of blocks that wait for a viewer.";
        VIEWER_QUEUE_BLOCKS: Gauge ["viewer", "address"] "ringcast_relay_viewer_queue_blocks",
            "Blocks that wait for a viewer.";
        VIEWER_QUEUE_LIMIT_BYTES: Gauge [] "ringcast_relay_viewer_queue_limit_bytes",
            "Bytes that wait for a viewer at most (--viewer-queue).";
        VIEWER_LAG_SECONDS: Gauge ["viewer", "address"] "ringcast_relay_viewer_lag_seconds",
            "Time since the oldest block came that a viewer has not said to have, to half a second; 0 if it has all.";
        VIEWER_SENT_PACKETS: Counter ["viewer", "address"] "ringcast_relay_viewer_sent_packets_total",
            "Packets given to the connection of a viewer.";
        VIEWER_SKIPPED_PACKETS: Counter ["viewer", "address"] "ringcast_relay_viewer_skipped_packets_total",
            "Packets skipped for a viewer.";
        UNLISTED_PEERS: Gauge ["role"] "ringcast_relay_unlisted_peers",
            "Sniffers and viewers that have no series of their own: the bound is 1000 each, and viewers with the longest queues go first.";
        STREAMS: Gauge ["state"] "ringcast_relay_streams",
            "Streams that are known, by state: live, backlog, away, ended.";
        MEMORY_USED_BYTES: Gauge [] "ringcast_relay_memory_used_bytes",
            "Memory in use of what --memory bounds.";
        MEMORY_LIMIT_BYTES: Gauge [] "ringcast_relay_memory_limit_bytes",
            "The bound on memory (--memory).";
        RECENT_BYTES: Gauge [] "ringcast_relay_recent_bytes",
            "Bytes kept for viewers that come back, of all workers.";
        CERTIFICATE_EXPIRY: Gauge [] "ringcast_relay_certificate_expiry_timestamp_seconds",
            "When the relay's certificate ends, in seconds since 1970; absent without TLS.";
        WORKERS: Gauge [] "ringcast_relay_workers",
            "Threads that forward (--workers).";
    }
}

/// Metrics of the sniffer.
pub mod sniffer {
    use super::*;

    metrics! {
        RINGS: Gauge ["interface"] "ringcast_sniffer_rings",
            "Rings that are open on an interface.";
        RING_PACKETS: Counter ["interface"] "ringcast_sniffer_ring_packets_total",
            "Packets that passed the filter of an interface's rings, those that the kernel dropped among them (tp_packets).";
        RING_DROPS: Counter ["interface"] "ringcast_sniffer_ring_drops_total",
            "Packets that the kernel dropped because a ring was full (tp_drops).";
        RING_FREEZES: Counter ["interface"] "ringcast_sniffer_ring_freezes_total",
            "Times that a ring became full (tp_freeze_q_cnt).";
        RING_FILL_RATIO: Gauge ["interface"] "ringcast_sniffer_ring_fill_ratio",
            "Part of the fullest ring's blocks that wait to be packed, 0 to 1.";
        INTERFACE_DROPS: Counter ["interface"] "ringcast_sniffer_interface_drops_total",
            "Packets that the interface dropped itself, where it says so.";
        CAPTURED_PACKETS: Counter ["interface"] "ringcast_sniffer_captured_packets_total",
            "Packets that were packed.";
        CAPTURED_BYTES: Counter ["interface"] "ringcast_sniffer_captured_bytes_total",
            "Captured bytes of packets that were packed.";
        CUT_PACKETS: Counter ["interface"] "ringcast_sniffer_cut_packets_total",
            "Packets that were packed shortened.";
        BLOCKS: Counter ["body"] "ringcast_sniffer_blocks_total",
            "Blocks of packets that were packed, by body: lz4, stored.";
        BLOCK_RAW_BYTES: Counter [] "ringcast_sniffer_block_raw_bytes_total",
            "Bytes of blocks' bodies before compression.";
        BLOCK_PACKED_BYTES: Counter [] "ringcast_sniffer_block_packed_bytes_total",
            "Bytes of blocks' bodies as they are sent.";
        LOST_PACKETS: Counter ["stage"] "ringcast_sniffer_lost_packets_total",
            "Packets that were packed and lost before the relay had them, by stage: sniffer memory, spool evicted, spool failed, sniffer restarted.";
        STREAMS: Gauge [] "ringcast_sniffer_streams",
            "Streams that are not settled whole, those of earlier runs among them.";
        MEMORY_USED_BYTES: Gauge [] "ringcast_sniffer_memory_used_bytes",
            "Memory in use of what --memory bounds.";
        MEMORY_LIMIT_BYTES: Gauge [] "ringcast_sniffer_memory_limit_bytes",
            "The bound on memory (--memory).";
        UPLINK_CONNECTED: Gauge [] "ringcast_sniffer_uplink_connected",
            "1 if the relay has welcomed us and the line stands, else 0.";
        UPLINK_CONNECTS: Counter [] "ringcast_sniffer_uplink_connects_total",
            "Times that the relay has welcomed us.";
        UPLINK_ROUND_TRIP_SECONDS: Gauge [] "ringcast_sniffer_uplink_round_trip_seconds",
            "Last round trip to the relay; absent without a connection.";
        UPLINK_SENT_BYTES: Counter [] "ringcast_sniffer_uplink_sent_bytes_total",
            "Bytes of blocks given to the connection, those sent again among them.";
        UPLINK_SENT_BLOCKS: Counter [] "ringcast_sniffer_uplink_sent_blocks_total",
            "Blocks given to the connection, those sent again among them.";
        UPLINK_SENT_PACKETS: Counter [] "ringcast_sniffer_uplink_sent_packets_total",
            "Packets in blocks given to the connection, those sent again among them.";
        UPLINK_RESENT_BLOCKS: Counter [] "ringcast_sniffer_uplink_resent_blocks_total",
            "Blocks sent again after a cut.";
        UPLINK_WAITING_BYTES: Gauge [] "ringcast_sniffer_uplink_waiting_bytes",
            "Bytes of blocks in memory that wait to be sent.";
        UPLINK_UNACKNOWLEDGED_BYTES: Gauge [] "ringcast_sniffer_uplink_unacknowledged_bytes",
            "Bytes of blocks that were sent and are not settled.";
        UPLINK_VIEWERS: Gauge [] "ringcast_sniffer_uplink_viewers",
            "Viewers that take our streams, as the relay says.";
        SPOOL_BYTES: Gauge [] "ringcast_sniffer_spool_bytes",
            "Bytes of the spool on disk; absent without --spool, like the others of the spool.";
        SPOOL_LIMIT_BYTES: Gauge [] "ringcast_sniffer_spool_limit_bytes",
            "Bytes of the spool at most (--spool-size).";
        SPOOL_UNSETTLED_BYTES: Gauge [] "ringcast_sniffer_spool_unsettled_bytes",
            "Bytes in the spool that the relay has not settled.";
        SPOOL_OLDEST_AGE_SECONDS: Gauge [] "ringcast_sniffer_spool_oldest_age_seconds",
            "Age of the oldest packet in the spool that is not settled; 0 if there is none.";
        SPOOL_WRITTEN_BYTES: Counter [] "ringcast_sniffer_spool_written_bytes_total",
            "Bytes of blocks written to the spool.";
        SPOOL_EVICTED_PACKETS: Counter [] "ringcast_sniffer_spool_evicted_packets_total",
            "Packets whose segments made room in the spool before they were settled.";
        SPOOL_FAILED: Gauge [] "ringcast_sniffer_spool_failed",
            "1 if the spool could not be written or read and is not used, else 0.";
    }
}

/// Metrics of the process, by the names that all programs give them.
pub mod process {
    use super::*;

    metrics! {
        BUILD_INFO: Gauge ["program", "version"] "ringcast_build_info",
            "1; its labels say what runs.";
        CPU_SECONDS: Counter [] "process_cpu_seconds_total",
            "Time of processors used, in user and system mode.";
        RESIDENT_MEMORY_BYTES: Gauge [] "process_resident_memory_bytes",
            "Memory that the process has in RAM, rings among it.";
        OPEN_FDS: Gauge [] "process_open_fds",
            "Descriptors that are open.";
        MAX_FDS: Gauge [] "process_max_fds",
            "Descriptors that may be open at most.";
        THREADS: Gauge [] "process_threads",
            "Threads of the process.";
        START_TIME_SECONDS: Gauge [] "process_start_time_seconds",
            "When the program began, in seconds since 1970.";
    }
}
