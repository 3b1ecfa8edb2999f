//! The two ways in which a call never returns: the thread hangs, or the process aborts. Must not know why.

use std::error::Error;

/// Blocks the calling thread permanently.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Prints why the shim cannot work, with all causes, and aborts the process.
#[expect(clippy::print_stderr, reason = "the target's process has no other way to report why it aborts")]
pub(crate) fn abort_with(error: &dyn Error) -> ! {
    eprintln!("the shim for the GPU driver cannot work: {}", with_causes(error));
    std::process::abort()
}

/// Returns the text of an error and of its causes. Leaves out a cause that the text before it already states.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer {
        text: &'static str,
        cause: Option<Box<Layer>>,
    }

    impl std::fmt::Display for Layer {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str(self.text)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
        }
    }

    #[test]
    fn each_cause_is_stated_once() {
        let cause = |text, cause| Some(Box::new(Layer { text, cause }));
        let error = Layer { text: "outer: middle", cause: cause("middle", cause("inner", None)) };
        assert_eq!(with_causes(&error), "outer: middle: inner");
    }
}
