"""A process with a scheduler, for tests that ask it things from elsewhere."""

from __future__ import annotations

import sys
import threading

from apscheduler.schedulers.background import BackgroundScheduler

import clew


def nightly() -> dict[str, int]:
    clew.get_logger().info("nightly.counted", rows=17)
    return {"rows": 17}


def main() -> None:
    clew.configure(service_name="shop", log_format="none")
    scheduler = BackgroundScheduler()
    clew.instrument(scheduler)
    scheduler.add_job(nightly, "interval", hours=8, id="nightly")
    scheduler.add_job(nightly, "interval", hours=8, id="a/b ü?%")
    scheduler.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Event().wait(float(sys.argv[1]))


if __name__ == "__main__":
    main()
