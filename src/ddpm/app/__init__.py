"""The web page. `functions` is what it does, without Gradio; `tabs` is what it looks like, one file a tab."""
