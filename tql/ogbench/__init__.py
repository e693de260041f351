"""OGBench's side: tasks, data of its scripted policies, environments, evaluation and films."""
