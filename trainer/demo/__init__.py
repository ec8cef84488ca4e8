"""The offline demo: tasks with exact answers, a long-tailed seed pool of them, a held-out benchmark, and the offline teacher."""
