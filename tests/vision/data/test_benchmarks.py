"""The published numbers against sums that other sources print, and the names by which folders are recognised."""

from moe_prompt.vision.data.benchmarks import KNOWN_TASKS, known_task


def test_the_published_numbers():
    """Sums that papers print: 19 tasks of 1,000 pictures; CUB 11,788, NABirds 48,562, Dogs 20,580, Cars 16,185."""
    tasks = list(KNOWN_TASKS.values())
    assert len(tasks) == 24 and sum(task.layout == "vtab" for task in tasks) == 19
    for task in tasks:
        if task.layout == "vtab":
            assert [task.counts[split] for split in ("train800", "val200", "train800val200")] == [800, 200, 1000]
    totals = {"cub": 11_788, "nabirds": 48_562, "flowers": 8_189, "dogs": 20_580, "cars": 16_185}
    assert {name: sum(KNOWN_TASKS[name].counts.values()) for name in totals} == totals
    shares = {
        "dsprites_ori": 737_280 // 10,
        "svhn": 26_032,
        "patch_camelyon": 327_680 // 10,
        "smallnorb_azi": 24_300 // 2,
    }
    assert {name: KNOWN_TASKS[name].counts["test"] for name in shares} == shares


def test_names_of_tasks_are_understood_in_their_layout():
    assert known_task("Oxford-Flowers", "vtab").name == "oxford_flowers102"
    assert known_task("OxfordFlowers", "fgvc").name == "flowers"
    assert known_task("CUB_200_2011", "fgvc").classes == 200 and known_task("CUB_200_2011", "vtab") is None
    for task in KNOWN_TASKS.values():
        for name in (task.name, *task.aliases, task.title):
            assert known_task(name, task.layout) == task, name
