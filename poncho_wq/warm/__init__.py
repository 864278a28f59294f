"""Warm interpreters: a function task in a forked child of a process that has imported already.

THE STORY.  Work Queue's worker W runs tasks, each as ``sh -c COMMAND``, the leader of a process group of its own.

  T1  is the first task of its environment on W.  Its shell reads ``client.sh``, finds no server, and is replaced by the
      wrapper, the environment's Python and the runner, as any task.  Before it calls the function, the runner starts a
      server S: a process of its own group, in none of the task's directories, with none of its descriptors.
  S   imports what the function's file names, looks after each whether it may be forked still, and ends if not: threads,
      open files, shared memory or processes that an import has left. Which it was is noted in ``unfit``.
      Then it publishes its FIFOs by renaming ``cur``, and waits.
  T2  reads ``cur``, claims a reply FIFO by creating a file that must not exist, and sends one line: its pid, the slot,
      and the words that its runner would have been given.
  C   is a child that S has forked before anybody asked: what a process writes to for the first time after a fork is
      copied then, and C does that while it waits, by doing what all tasks do on nothing.  S reads of T2, from /proc and
      by pidfd_getfd, what C will need (environment variables, umask, limits, streams) and sends it.  C enters T2's
      process group and directory, says "started", and is from then on what T2's Python would have been, with the
      imports done.  If anything at all is odd before "started", C ends, and T2 runs as T1 did.
      When it is done, C notes that in memory that it shares with S, tells T2 its status, and ends: giving its memory
      back takes as long as the task did.  Nothing of the task's is open any more then.
      Where W was too slow to make T2 (or T1) a leader, it makes itself that of a session.  C leads a group of its own
      then, since no process can join one of another session.
  S   reaps C, and tells T2 how it ended if C could not; T2 ends in the same way.
  W   kills T2's group (cancel, lost manager): C is in it.  W kills T2's pid alone (running_time_max): S sees it by T2's
      pidfd and kills the group.  S dies: T2 finds the end of its reply FIFO, and kills its group with itself.
      W dies, or its directory goes, or nothing has come for a while: S ends.

One server for each environment, number of threads and group of imported packages, at most eight for a worker: a fork
costs by what the process has loaded.  The least recently used one makes room.

Why no task sees another's state: S never runs a task's function, nor unpickles anything of it; it imports installed
modules by name, as the environment has them, and no file of a task.  Some libraries it uses once, on data of its own,
since their first use costs a child as much as the task's own work.  What C does happens in C's memory.  Random number
generators are seeded again.  Variables that Python or a library reads when it starts (``PYTHON*``, ``LD_*``,
``OMP_*`` …) must be S's own, else the task runs fresh; the thread counts are part of the name of S's directory.  One
difference to fresh interpreters: the seed of ``hash("text")`` is S's, and so the same for all of its tasks.

C is outside T2's process *tree* (its parent is S), though in its group: who measures a task by its tree does not see C.
So a task under Work Queue's resource monitor runs fresh.

    client.sh     the shell's part: built-ins only, since every process that it starts would cost as much as the child
    server.py     S: the standard library, Python 3.9 and Linux 5.3 or later; elsewhere all tasks run fresh
    fitness.py    whether S may be forked after an import: no threads, nothing that all children would share
    settling.py   what S does about what it imports, so that a child has less to do
    order.py      what C needs to know of T2, read by S
    children.py   how S forks C, and has one wait
    child.py      how C takes T2's place
    starting.py   how T1 starts S
"""
