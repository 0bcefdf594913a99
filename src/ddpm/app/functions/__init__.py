"""What the page does, without a word of Gradio: plain functions of models, numbers and files."""
