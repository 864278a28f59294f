"""Whatever Debian's ``work_queue`` has, under the name that conda's ndcctools gives it."""

import sys

from poncho_wq.engines.binding import find_other_work_queue

sys.modules[__name__] = find_other_work_queue()
