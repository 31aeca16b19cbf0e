//! Everything that becomes BPF: filter expressions, the exclusion of our own uplink, user-space evaluation.
