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
        INTERFACE_UP: Gauge ["interface"] "ringcast_sniffer_interface_up",
            "1 if an interface is there, is captured, and is up with a carrier, else 0.";
        INTERFACE_DROPS: Counter ["interface"] "ringcast_sniffer_interface_drops_total",
            "Packets that the interface dropped itself, where it says so; those that the filter would not have taken among them.";
        RINGS: Gauge ["interface"] "ringcast_sniffer_rings",
            "Rings that are open on an interface.";
        RING_BYTES: Gauge ["interface", "thread"] "ringcast_sniffer_ring_bytes",
            "Memory of a ring, as it was had (--ring-size).";
        RING_FILL_RATIO: Gauge ["interface", "thread"] "ringcast_sniffer_ring_fill_ratio",
            "Part of a ring's blocks that waited to be packed, the most of the last second: at 1 packets are dropped.";
        RING_PACKETS: Counter ["interface", "thread"] "ringcast_sniffer_ring_packets_total",
            "Packets that passed the filter of an interface's ring, those that the kernel dropped among them (tp_packets).";
        RING_DROPS: Counter ["interface", "thread"] "ringcast_sniffer_ring_drops_total",
            "Packets that the kernel dropped because the ring was full (tp_drops).";
        RING_FREEZES: Counter ["interface", "thread"] "ringcast_sniffer_ring_freezes_total",
            "Times that the ring became full (tp_freeze_q_cnt).";
        CAPTURED_PACKETS: Counter ["interface", "thread"] "ringcast_sniffer_captured_packets_total",
            "Packets that were packed, of an interface, or of a file by its name.";
        CAPTURED_BYTES: Counter ["interface", "thread"] "ringcast_sniffer_captured_bytes_total",
            "Captured bytes of packets that were packed.";
        CUT_PACKETS: Counter ["interface", "thread"] "ringcast_sniffer_cut_packets_total",
            "Packets that were packed shortened.";
        THREAD_SILENT_SECONDS: Gauge ["thread"] "ringcast_sniffer_thread_silent_seconds",
            "Time since a capture thread gave a sign of life, which it does each second; above 10 it is not well.";
        BLOCKS: Counter ["body"] "ringcast_sniffer_blocks_total",
            "Blocks of packets that were packed, by body: lz4, stored.";
        BLOCK_PACKETS: Counter [] "ringcast_sniffer_block_packets_total",
            "Packets in these blocks, as of now: the counters of rings and interfaces are up to a second older.";
        BLOCK_RAW_BYTES: Counter [] "ringcast_sniffer_block_raw_bytes_total",
            "Bytes of blocks' bodies before compression.";
        BLOCK_PACKED_BYTES: Counter [] "ringcast_sniffer_block_packed_bytes_total",
            "Bytes of blocks' bodies as they are sent.";
        LOST_PACKETS: Counter ["stage"] "ringcast_sniffer_lost_packets_total",
            "Packets lost before the relay had them, by stage: kernel ring (the drops of all rings), sniffer memory, spool evicted, spool failed, sniffer restarted, corrupt, unexplained.";
        STREAMS: Gauge [] "ringcast_sniffer_streams",
            "Streams that are not settled whole, those of earlier runs among them.";
        MEMORY_USED_BYTES: Gauge [] "ringcast_sniffer_memory_used_bytes",
            "Memory in use of what --memory bounds.";
        MEMORY_LIMIT_BYTES: Gauge [] "ringcast_sniffer_memory_limit_bytes",
            "The bound on memory (--memory).";
        BACKLOG_PACKETS: Gauge [] "ringcast_sniffer_backlog_packets",
            "Packets that are behind: those that wait in memory to be sent, and those in the spool that are not settled.";
        BACKLOG_BYTES: Gauge [] "ringcast_sniffer_backlog_bytes",
            "Bytes of what is behind.";
        UPLINK_CONNECTED: Gauge [] "ringcast_sniffer_uplink_connected",
            "1 if the relay has welcomed us and the line stands, else 0.";
        UPLINK_STATE_SECONDS: Gauge [] "ringcast_sniffer_uplink_state_seconds",
            "Time since the line was had, or lost.";
        UPLINK_CONNECTS: Counter [] "ringcast_sniffer_uplink_connects_total",
            "Times that the relay has welcomed us.";
        UPLINK_CONNECT_FAILURES: Counter [] "ringcast_sniffer_uplink_connect_failures_total",
            "Attempts to connect that failed, one for each address of the relay.";
        UPLINK_ROUND_TRIP_SECONDS: Gauge [] "ringcast_sniffer_uplink_round_trip_seconds",
            "Round trip to the relay, as TCP has it smoothed; absent without a connection.";
        UPLINK_SENT_BYTES: Counter [] "ringcast_sniffer_uplink_sent_bytes_total",
            "Bytes of blocks given to the connection, those sent again among them.";
        UPLINK_SENT_BLOCKS: Counter [] "ringcast_sniffer_uplink_sent_blocks_total",
            "Blocks given to the connection, those sent again among them.";
        UPLINK_SENT_PACKETS: Counter [] "ringcast_sniffer_uplink_sent_packets_total",
            "Packets in blocks given to the connection, those sent again among them.";
        UPLINK_RESENT_BYTES: Counter [] "ringcast_sniffer_uplink_resent_bytes_total",
            "Bytes of blocks sent again after a cut.";
        UPLINK_RESENT_BLOCKS: Counter [] "ringcast_sniffer_uplink_resent_blocks_total",
            "Blocks sent again after a cut.";
        UPLINK_RESENT_PACKETS: Counter [] "ringcast_sniffer_uplink_resent_packets_total",
            "Packets in blocks sent again after a cut.";
        UPLINK_SETTLED_PACKETS: Counter [] "ringcast_sniffer_uplink_settled_packets_total",
            "Packets that the relay has settled while they were kept in memory.";
        UPLINK_WAITING_BYTES: Gauge [] "ringcast_sniffer_uplink_waiting_bytes",
            "Bytes of blocks in memory that wait to be sent.";
        UPLINK_UNACKNOWLEDGED_BYTES: Gauge [] "ringcast_sniffer_uplink_unacknowledged_bytes",
            "Bytes of blocks that were sent and that the relay has not said to have.";
        UPLINK_UNACKNOWLEDGED_BLOCKS: Gauge [] "ringcast_sniffer_uplink_unacknowledged_blocks",
            "Blocks that were sent and that the relay has not said to have.";
        UPLINK_UNACKNOWLEDGED_PACKETS: Gauge [] "ringcast_sniffer_uplink_unacknowledged_packets",
            "Packets in blocks that were sent and that the relay has not said to have.";
        UPLINK_UNSETTLED_BYTES: Gauge [] "ringcast_sniffer_uplink_unsettled_bytes",
            "Bytes of blocks that the relay has and has not settled: viewers are still to get them.";
        UPLINK_VIEWERS: Gauge [] "ringcast_sniffer_uplink_viewers",
            "Viewers that take our streams, as the relay says.";
        CLOCK_OFFSET_SECONDS: Gauge [] "ringcast_sniffer_clock_offset_seconds",
            "How far the relay's clock is ahead of ours, as of the last hello or ping; absent before the first.";
        CLOCK_OFFSET_ERROR_SECONDS: Gauge [] "ringcast_sniffer_clock_offset_error_seconds",
            "The truth is within so much of the clock offset.";
        SPOOL_BYTES: Gauge [] "ringcast_sniffer_spool_bytes",
            "Bytes of the spool on disk; absent without --spool, like the others of the spool.";
        SPOOL_LIMIT_BYTES: Gauge [] "ringcast_sniffer_spool_limit_bytes",
            "Bytes of the spool at most (--spool-size).";
        SPOOL_UNSETTLED_BYTES: Gauge [] "ringcast_sniffer_spool_unsettled_bytes",
            "Bytes in the spool that the relay has not settled.";
        SPOOL_UNSETTLED_PACKETS: Gauge [] "ringcast_sniffer_spool_unsettled_packets",
            "Packets in the spool that the relay has not settled.";
        SPOOL_OLDEST_AGE_SECONDS: Gauge [] "ringcast_sniffer_spool_oldest_age_seconds",
            "Age of the oldest packet in the spool's oldest segment; 0 if all of the spool is settled.";
        SPOOL_WRITTEN_BYTES: Counter [] "ringcast_sniffer_spool_written_bytes_total",
            "Bytes of blocks written to the spool.";
        SPOOL_WRITTEN_PACKETS: Counter [] "ringcast_sniffer_spool_written_packets_total",
            "Packets in blocks written to the spool.";
        SPOOL_EVICTED_PACKETS: Counter [] "ringcast_sniffer_spool_evicted_packets_total",
            "Packets whose segments made room in the spool before anybody had read them.";
        SPOOL_EVICTED_BYTES: Counter [] "ringcast_sniffer_spool_evicted_bytes_total",
            "Captured bytes of these packets.";
        SPOOL_WRITE_FAILURES: Counter [] "ringcast_sniffer_spool_write_failures_total",
            "Times that the spool could not be written, or not be made durable.";
        SPOOL_DAMAGES: Counter [] "ringcast_sniffer_spool_damages_total",
            "Passages of the spool that could not be read.";
        SPOOL_FAILED: Gauge [] "ringcast_sniffer_spool_failed",
            "1 if the spool could not be written when it was tried last, else 0.";
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
