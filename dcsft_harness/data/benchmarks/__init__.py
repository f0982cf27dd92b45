"""The paper's published benchmarks; each becomes one local folder that its lmms-eval task reads.

    published files or hub rows --(dcsft data prepare)--> prepared folder --(process_docs)--> task

A `Source` describes one benchmark's raw form; `prepare` streams it into a folder; `prepared` reads the
folder.
"""
