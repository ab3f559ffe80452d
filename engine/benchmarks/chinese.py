"""Pairs of Chinese sentences of which one breaks a rule of grammar: written as templates, drawn by a seed.

Both sentences of a pair are equally long, and mostly made of the same characters, so that neither is likelier for its length
or its words; a wrong one breaks a rule that every school grammar names. `python -m engine.benchmarks.chinese` writes
grammar-zh.jsonl anew. The templates are made for Tunebook and given away (CC0).
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEED, EACH = 0, 25
TARGET = Path(__file__).resolve().parent / "grammar-zh.jsonl"
Pair = tuple[str, str]  # the right sentence, the wrong one


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE = _words("我 你 他 她 我们 他们 妈妈 爸爸 哥哥 姐姐 老师 小王")
# Nouns with every one of these measure words that can count them; the first is the usual one. Each verb fits its nouns.
MEASURED = {
    "买了": {
        "书": "本部", "笔": "支", "衣服": "件", "车": "辆部", "椅子": "把张", "纸": "张条", "鱼": "条", "花": "朵束棵颗支",
        "帽子": "顶", "画": "幅张", "裤子": "条件", "雨伞": "把支顶", "桌子": "张", "手机": "部支",
    },
    "看见": {
        "狗": "只条", "马": "匹头", "树": "棵颗", "飞机": "架部", "桥": "座条架", "山": "座", "鸟": "只", "船": "条只艘",
        "灯": "盏支", "猫": "只", "牛": "头条", "火车": "辆列", "河": "条", "刀": "把支", "星星": "颗",
    },
}  # fmt: skip
MEASURES = "本支件辆把张条朵顶匹棵架座盏头颗"


def measure_words() -> Iterator[Pair]:
    for verb, nouns in MEASURED.items():
        for noun, own in nouns.items():
            for who, count, wrong in itertools.product(PEOPLE, "一三四五", MEASURES):
                if wrong not in own:
                    yield f"{who}{verb}{count}{own[0]}{noun}。", f"{who}{verb}{count}{wrong}{noun}。"


def negation() -> Iterator[Pair]:
    """没 denies what was or was had, 不 what is and what may be."""
    done = _words("吃过这个菜 去过北京 看过这部电影 学过英语 见过大海 有时间 有钱 有自行车 喝过咖啡 听过这首歌")
    being = _words("是老师 是医生 知道这件事 认识他的朋友 应该这么说 可以进去 姓张 是北京人 会游泳 属于这里")
    for who in PEOPLE:
        yield from ((f"{who}没{what}。", f"{who}不{what}。") for what in done)
        yield from ((f"{who}不{what}。", f"{who}没{what}。") for what in being)


def aspect() -> Iterator[Pair]:
    """What goes on takes 着, what one has been through 过; what never was takes no 了."""
    places = _words("上海 北京 中国 那个地方 他的家 这家饭店")
    doing = [("看", "书"), ("写", "信"), ("吃", "饭"), ("喝", "茶"), ("唱", "歌"), ("打", "电话"), ("听", "音乐")]
    for who in PEOPLE:
        yield from ((f"{who}从来没去过{place}。", f"{who}从来没去了{place}。") for place in places)
        yield from ((f"{who}正{verb}着{what}呢。", f"{who}正{verb}过{what}呢。") for verb, what in doing)
        yield from ((f"{who}以前去过{place}。", f"{who}以前去着{place}。") for place in places)


ACTS = [
    ("门", "关上"), ("窗户", "打开"), ("作业", "做完"), ("杯子", "打破"), ("书", "看完"), ("衣服", "洗干净"), ("饭", "吃完"),
    ("灯", "关掉"), ("钱", "花光"), ("房间", "收拾好"), ("信", "写好"), ("自行车", "修好"), ("钥匙", "弄丢"),
]  # fmt: skip


def ba() -> Iterator[Pair]:
    """把 stands before its object, and the object before the verb."""
    for who, (what, act) in itertools.product(PEOPLE, ACTS):
        yield f"{who}把{what}{act}了。", f"{who}把{act}了{what}。"
        yield f"{who}已经把{what}{act}了。", f"{who}已经{what}把{act}了。"


def bei() -> Iterator[Pair]:
    """被 stands between what suffers and who acts."""
    for who, (what, act) in itertools.product(PEOPLE, ACTS):
        yield f"{what}被{who}{act}了。", f"被{what}{who}{act}了。"
        yield f"{what}已经被{who}{act}了。", f"{what}已经{who}{act}被了。"


def comparison() -> Iterator[Pair]:
    """比 and what is compared with stand before the adjective."""
    sides = [
        ("哥哥", "弟弟"), ("姐姐", "妹妹"), ("他", "我"), ("小王", "小李"), ("今天", "昨天"), ("这里", "那里"),
        ("北京", "上海"), ("飞机", "火车"), ("这本书", "那本书"), ("夏天", "春天"),
    ]  # fmt: skip
    fitting = dict.fromkeys((one for one, _ in sides[:4]), ("高", "胖", "聪明", "年轻", "忙"))
    fitting |= {"今天": ("热", "冷", "忙"), "这里": ("热", "安静", "漂亮"), "北京": ("冷", "大"), "飞机": ("快", "贵"),
                "这本书": ("难", "贵", "有意思"), "夏天": ("热",)}  # fmt: skip
    for one, other in sides:
        for how in fitting[one]:
            yield f"{one}比{other}{how}。", f"{one}{how}比{other}。"
            yield f"{one}比{other}更{how}。", f"{one}比{other}很{how}。"


def adverbs() -> Iterator[Pair]:
    """都, 也, 就, 还 stand after the subject and before the verb."""
    what = _words("是学生 喜欢音乐 想去中国 会说英语 在家里 认识小李 有工作 爱看电影")
    for who, does in itertools.product(("我们", "他们", "你们", "老师们", "孩子们", "大家"), what):
        yield f"{who}都{does}。", f"都{who}{does}。"
    for who, does, adverb in itertools.product(PEOPLE, what, "也还"):
        yield f"{who}{adverb}{does}。", f"{adverb}{who}{does}。"


def place_and_time() -> Iterator[Pair]:
    """Where and when stand before the verb."""
    places = [
        ("图书馆", "看书"),
        ("学校", "学习"),
        ("公司", "工作"),
        ("家里", "吃饭"),
        ("公园", "跑步"),
        ("医院", "上班"),
    ]
    times = _words("明天 后天 下个星期 今天晚上 下午三点")
    does = _words("去北京 去医院 去上海 去买东西 去看电影 去机场")
    for who in PEOPLE:
        yield from ((f"{who}在{where}{act}。", f"{who}{act}在{where}。") for where, act in places)
        yield from ((f"{who}{when}{act}。", f"{who}{act}{when}。") for when, act in itertools.product(times, does))


def questions() -> Iterator[Pair]:
    """吗 makes a statement a question; what asks already takes 呢."""
    asks = _words(
        "为什么不高兴 为什么不来 为什么这么忙 是不是学生 想不想喝茶 有没有时间 会不会游泳 能不能帮忙 认不认识她 去不去公园"
    )
    for who, what in itertools.product(PEOPLE[1:], asks):
        yield f"{who}{what}呢？", f"{who}{what}吗？"


def de() -> Iterator[Pair]:
    """的 before a noun, 地 before a verb, 得 after one."""
    degrees = [("跑", "很快"), ("说", "很好"), ("写", "很漂亮"), ("唱", "不错"), ("起", "很早"), ("睡", "很晚")]
    owned = _words("书 手机 朋友 房间 老师 爸爸 衣服")
    manner = [
        ("慢慢", "走过来"),
        ("高兴", "笑了"),
        ("认真", "学习"),
        ("大声", "说话"),
        ("努力", "工作"),
        ("安静", "坐着"),
    ]
    for who in PEOPLE:
        yield from ((f"{who}{act}得{how}。", f"{who}{act}地{how}。") for act, how in degrees)
        yield from ((f"这是{who}的{what}。", f"这是{who}得{what}。") for what in owned)
        yield from ((f"{who}{how}地{act}。", f"{who}{how}得{act}。") for how, act in manner)


def two() -> Iterator[Pair]:
    """Things are counted with 两, places in a row with 二."""
    counted = _words("个孩子 本书 张票 件衣服 杯茶 个苹果 只猫 辆车 个朋友")
    ranked = _words("天 次 年 课 个月")
    for who in PEOPLE:
        yield from ((f"{who}有两{what}。", f"{who}有二{what}。") for what in counted)
        yield from ((f"{who}等了两{what}。", f"{who}等了二{what}。") for what in ("个小时", "个月", "个星期", "天"))
    ends = _words("下雨了 他就回家了 我们去了北京 她没有来 大家都很累")
    yield from ((f"第二{which}，{end}。", f"第两{which}，{end}。") for which, end in itertools.product(ranked, ends))


def conjunctions() -> Iterator[Pair]:
    """Conjunctions come in pairs: 因为 所以, 虽然 但是, 如果 就, 只要 就, 只有 才."""
    reasons = [
        ("下雨", "没去公园", "去了公园"), ("生病", "没来上课", "来上课了"), ("太忙", "没吃午饭", "吃了午饭"),
        ("天黑", "没去跑步", "去跑步了"), ("太远", "没去看他", "去看他了"),
    ]  # fmt: skip
    for who in PEOPLE:
        for why, then, still in reasons:
            yield f"因为{why}，所以{who}{then}。", f"因为{why}，但是{who}{then}。"
            yield f"虽然{why}，但是{who}{still}。", f"虽然{why}，所以{who}{still}。"
        for when, then in (("努力", "能学好"), ("有时间", "能去旅行"), ("坐飞机", "能赶上")):
            yield f"只要{when}，{who}就{then}。", f"只要{when}，{who}才{then}。"
            yield f"只有{when}，{who}才{then}。", f"只有{when}，{who}就{then}。"


FAMILIES: dict[str, Callable[[], Iterator[Pair]]] = {
    "measure words": measure_words, "negation": negation, "aspect": aspect, "ba": ba, "bei": bei,
    "comparison": comparison, "adverbs": adverbs, "place and time": place_and_time, "question words": questions,
    "de": de, "two": two, "conjunctions": conjunctions,
}  # fmt: skip


def rows(seed: int = SEED, each: int = EACH) -> list[dict[str, Any]]:
    """Return so many pairs of each family, drawn by the seed, the right one first in every other pair."""
    found = []
    for number, (family, pairs) in enumerate(FAMILIES.items()):
        draw = random.Random(f"{seed}:{family}")  # noqa: S311 - the same pairs each time
        drawn = draw.sample(sorted(set(pairs())), each)
        for n, (right, wrong) in enumerate(drawn):
            gold = (n + number) % 2
            found.append(
                {
                    "item": f"{family.replace(' ', '-')}-{n}", "family": family,
                    "choices": [wrong, right] if gold else [right, wrong], "gold": gold,
                }
            )  # fmt: skip
    return found


if __name__ == "__main__":
    TARGET.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()), "utf-8")
