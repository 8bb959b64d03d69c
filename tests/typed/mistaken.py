"""A user's script with mistakes: a checker of types has to report each line that has a comment."""

from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.captioner import Captioner
from fastrnn.captioning_solver import CaptioningSolver
from fastrnn.checkpoint import read_newest_checkpoint
from fastrnn.classifiers.rnn import CaptioningRNN, Regularisation
from fastrnn.decoding import beam_search
from fastrnn.metrics import bleu_1, evaluate_captions
from fastrnn.rnn_layers import lstm_forward, rnn_step_backward
from fastrnn.training import TrainConfig, Trainer

x = np.zeros((2, 3, 4))
words = {"<NULL>": 0, "<START>": 1, "<END>": 2}
fastrnn.set_num_threads("two")  # a count, not a text
h, c, cache = lstm_forward(x, x[:, 0], x[0], x[0], x[0, 0])  # it returns two
rnn_step_backward(x)  # the cache is missing
model = CaptioningRNN(list(words), input_dim=4)  # a mapping, not a list
good = CaptioningRNN(words, input_dim=4)
good.loss(x[0], x[0], Regularisation())  # by keyword alone
good.params["Wx"].backward()  # a tensor's, not an array's
found = beam_search(good, x[0], width="wide")  # a number
text: str = found.captions(good.idx_to_word)  # lists of texts
score: str = bleu_1(["a"], [["a"]])  # a float
scores: dict[str, float] = evaluate_captions(["a"], [["a"]])  # None is possible
read_newest_checkpoint(Path("run"))[0].about  # None is possible
TrainConfig(epochs="ten")  # a number
CaptioningSolver(good).train()  # the data are missing
Trainer(good, {}, TrainConfig(), "run")  # by keyword alone
Captioner.load("run")("dog.jpg").caption  # a list
