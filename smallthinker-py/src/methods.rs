//! The generating methods of `Model` and `Session`: eight methods, one list of keyword arguments.

/// Adds generating methods to a class: name, what it continues, result, and the function that does it.
macro_rules! generating_methods {
    ($class:ty { $(
        $(#[doc = $doc:literal])*
        $name:ident($subject:ident: $kind:ty $(= $default:ident)?) -> $result:ty = $run:path;
    )* }) => {
        #[pyo3::pymethods]
        impl $class { $(
            $(#[doc = $doc])*
            ///
            /// max_tokens None goes on to a stop or the end of the context. temperature 0 is greedy. top_k 0, top_p 1
            /// and min_p 0 keep every token. stop is a text or a list of texts. logit_bias maps token ids to what is
            /// added. logprobs n reports those of the n most likely tokens too. The same seed gives the same text.
            /// lm_head "full" or "sparse" differs from how the model was opened; logprobs are always from the full head.
            #[pyo3(signature = ($subject $(= $default)?, *, max_tokens = 256, temperature = 0.0,
                top_k = 0, top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0, logit_bias = None, seed = None,
                stop = None, logprobs = None, lm_head = None))]
            #[allow(clippy::too_many_arguments)]
            fn $name<'py>(
                &self,
                py: pyo3::Python<'py>,
                $subject: $kind,
                max_tokens: Option<i128>,
                temperature: f32,
                top_k: i128,
                top_p: f32,
                min_p: f32,
                repetition_penalty: f32,
                logit_bias: Option<pyo3::Bound<'py, pyo3::types::PyDict>>,
                seed: Option<i128>,
                stop: Option<pyo3::Bound<'py, pyo3::PyAny>>,
                logprobs: Option<i128>,
                lm_head: Option<&str>,
            ) -> pyo3::PyResult<$result> {
                let keywords = Keywords {
                    max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, logit_bias, seed, stop, logprobs,
                    lm_head,
                };
                $run(self, py, $subject, keywords.options()?)
            }
        )* }
    };
}

pub(crate) use generating_methods;
