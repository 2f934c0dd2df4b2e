//! What is told, by the thread and of others.

use super::*;

/// How long something may take that happens at once.
const SOON: Duration = Duration::from_secs(10);

fn down(members: &[&str]) -> Words {
    let down = members.iter().map(|member| ((*member).to_owned(), "refused".to_owned())).collect();
    Words { down: BTreeMap::from([("web".to_owned(), down)]), ..Words::default() }
}

/// A node says that it is there by its first list, also if that is empty, and by what it said last, if it remembers none.
#[tokio::test]
async fn the_thread_tells_when_there_is_something_to_go_by() {
    let (want, wanted) = watch::channel(None);
    let (frames, ear) = mpsc::channel(1);
    let (recall, recalled) = watch::channel(None);
    let (tell_own, mut own) = watch::channel(Own::default());
    let socket = FrameSender::open().expect("a socket");
    let tell: Tell = Arc::new(|_, _| {});
    let thread = run(Checker::new(Words::default()), socket, wanted, ear, recalled, tell_own, tell);
    let script = async {
        let mut told = async || {
            tokio::time::timeout(SOON, own.changed()).await.expect("it tells").expect("it runs");
            own.borrow_and_update().clone()
        };
        recall.send_replace(Some(down(&["m1"])));
        let first = Own { words: down(&["m1"]), is_remembered: true, is_checked: false };
        assert_eq!(told().await, first, "what was said before, which nothing replaces yet");
        want.send_replace(Some(Arc::new(Vec::new())));
        assert_eq!(told().await, Own { words: Words::default(), is_remembered: true, is_checked: true });
        drop((want, frames));
    };
    tokio::time::timeout(SOON, async { tokio::join!(thread, script) }).await.expect("it ends with the agent");
}
