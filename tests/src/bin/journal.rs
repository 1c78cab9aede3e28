//! A service that needs a log, for tests of failover: see [`nasd_tests::journal`].

fn main() {
    let mount = std::env::args_os().nth(1).expect("the mount of the node beside it");
    nasd_tests::journal::serve(std::path::Path::new(&mount));
}
