//! End to end: the gateway as a child process between real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::print_stderr, reason = "where the files of a failed test are")]
#![allow(unreachable_pub, missing_docs, reason = "nothing outside this binary sees it")]
#![allow(dead_code, reason = "the support serves tests that come one by one")]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod checker;
mod client_features;
mod copy;
mod dashboard;
mod datapath;
mod failed_command;
mod failover;
mod filter;
mod from_replica;
mod h01_protocol;
mod h02_crowd;
mod h03_transactions;
mod h04_blocking;
mod h05_pubsub;
mod h06_client_list;
mod h06_in_multi;
mod h06_redirect;
mod h06_sessions;
mod h06_state;
mod h07_scripts_admin;
mod h08_slow_clients;
mod h09_source_away;
mod h12_expiry;
mod h13_crashes;
mod h14_cut_off;
mod h15_destination;
mod h16_flat_memory;
mod h17_existing_keys;
mod h18_flushes;
mod h30_switches;
mod h31_blocked;
mod h32_half_sent;
mod h33_subscribers;
mod h34_long_commands;
mod h35_switch_faults;
mod h36_h40_switch;
mod h37_scripts_cursors;
mod h38_rollback;
mod h39_refusals;
mod h51_h52_running;
mod heartbeat;
mod journal_limit;
mod large_values;
mod limits;
mod map;
mod one_node;
mod redis_rs;
mod repair;
mod replica_load;
mod restarts;
mod throttle;
mod tools;
mod workers;
