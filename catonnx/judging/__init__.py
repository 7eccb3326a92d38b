"""Judge finished models: on texts, beside others, and by the questions of tasks."""
