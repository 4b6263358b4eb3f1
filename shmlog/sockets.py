"""What every ZeroMQ socket of this software that writes messages of several frames must be told.

libzmq 4.3.5 aborts the process (session_base.cpp:233, issue 3442) if a socket is closed with linger
0 while a message is half written and its connection then breaks: the rest of the message can no
longer be read from a pipe that was cut short. That is just what a `kill -9` of the other end brings
about. With a little linger the pipe is readable until the break is seen.
"""

LINGER_MS = 100  # above any delay of libzmq's thread; only what is unsent makes a close wait
