//! The relay as a process and as a library, driven from outside.

#[path = "all/a2a.rs"]
mod a2a;
#[path = "all/blobs.rs"]
mod blobs;
#[path = "all/client.rs"]
mod client;
#[path = "all/cluster.rs"]
mod cluster;
#[path = "all/cluster_v2.rs"]
mod cluster_v2;
#[path = "all/coverage_v2.rs"]
mod coverage_v2;
#[path = "all/crash.rs"]
mod crash;
#[path = "all/delivery.rs"]
mod delivery;
#[path = "all/domains.rs"]
mod domains;
#[path = "all/embedded.rs"]
mod embedded;
#[path = "all/http.rs"]
mod http;
#[path = "all/memory.rs"]
mod memory;
#[path = "all/metrics.rs"]
mod metrics;
#[path = "all/oddities.rs"]
mod oddities;
#[path = "all/operator.rs"]
mod operator;
#[path = "all/process.rs"]
mod process;
#[path = "all/quic.rs"]
mod quic;
#[path = "all/service.rs"]
mod service;
#[path = "all/storage.rs"]
mod storage;
#[path = "all/stores.rs"]
mod stores;
#[path = "all/v2.rs"]
mod v2;
