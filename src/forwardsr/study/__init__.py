"""The paper's study, reproduced on a source of pictures: which runs each figure needs, its claims, its figures, its page."""
