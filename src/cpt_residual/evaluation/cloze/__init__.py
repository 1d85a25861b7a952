"""The task of cloze questions, which lm-eval finds through generated task files."""
