"""checkpoint -> scores of a suite -> a row of a board that is kept up to date.

    subject.py  what is scored: an adapter on its base, or a whole checkpoint
    settings.py what it is scored on, and how
    folder.py   a board's folder: its results, its leaderboard, one process at a time
    score.py    one checkpoint -> one row
    runs.py     a training run seen from outside: its complete checkpoints, and whether it goes on
    watch.py    a training run -> a row for each of its checkpoints, as they are written

A board's folder::

    board.json                   the board's settings, and results from elsewhere
    results/NAME/TASK/           scores, as `dcsft evaluate` writes them
    results/NAME/unfinished/     only while NAME is scored: lock, owner, the checkpoint's files
    leaderboard/                 made anew from all results after every row
"""
