//! An exchange of two agents while everything that takes part is killed again and again.
//!
//! Several threads at once: in each, a turn is answered by the next one, session to session, up to the last. Kills
//! are spread over the progress of the exchange. At the end every message must be in both copies of its thread
//! exactly once and in order. The relay carries them all, but for one seed in which agents of one host write to each
//! other directly; in another one they are sealed as v2 has it.

mod exchange;
mod killer;
mod mesh;

use exchange::{Plan, Route, Runtime, run};
use instar_tests::harness::isolated;

/// Messages of the exchange, over all threads.
const MESSAGES: usize = 200;

macro_rules! seeds {
    ($($name:ident = $seed:literal over $route:ident),* $(,)?) => {$(
        #[test]
        #[ignore = "kills real processes: tests/run chaos"]
        fn $name() {
            let (runtime, route) = (Runtime::StandIn, Route::$route);
            isolated($name, run(Plan { seed: $seed, runtime, route, messages: MESSAGES }));
        }
    )*};
}

seeds!(
    standin_seed_1 = 1 over Relay,
    standin_seed_2 = 2 over Relay,
    standin_seed_3 = 3 over Relay,
    standin_seed_1_direct = 1 over Direct,
    standin_seed_1_sealed = 1 over Sealed,
);

/// One seed by command: `tests/chaos`.
pub(crate) mod campaign {
    use super::{MESSAGES, Plan, Route, Runtime, isolated, run};

    #[test]
    #[ignore = "takes its seed from the environment: tests/chaos"]
    fn one_seed() {
        let variable = |name: &str| std::env::var(name).ok();
        let seed = variable("CHAOS_SEED").and_then(|seed| seed.parse().ok()).expect("CHAOS_SEED is a number");
        let runtime = match variable("CHAOS_RUNTIME").as_deref() {
            Some("real") => Runtime::RealCli,
            _ => Runtime::StandIn,
        };
        let route = match variable("CHAOS_ROUTE").as_deref() {
            Some("direct") => Route::Direct,
            Some("sealed") => Route::Sealed,
            _ => Route::Relay,
        };
        isolated(one_seed, run(Plan { seed, runtime, route, messages: MESSAGES }));
    }
}
