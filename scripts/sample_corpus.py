"""Public-domain English for the sample model: where it comes from and how it is cut.

Two Debian packages hold the text (both works are in the public domain):

    apt-get install --no-install-recommends bible-kjv bible-kjv-text r-cran-janeaustenr

`bible` prints the King James Version one verse a line; `Rscript` prints the six novels of Jane Austen out of the
data file of the R package. Everything below works on plain strings, and every random choice comes from the
`random.Random` that the caller passes, so one seed gives one corpus.
"""
import random
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

BOS, EOT, EOS = "<|startoftext|>", "<|endoftext|>", "<|im_end|>"

# In the order in which the `bible` program prints them.
BIBLE_BOOKS = """Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|1 Samuel|2 Samuel|1 Kings|2 Kings|
1 Chronicles|2 Chronicles|Ezra|Nehemiah|Esther|Job|Psalms|Proverbs|Ecclesiastes|Song of Solomon|Isaiah|Jeremiah|
Lamentations|Ezekiel|Daniel|Hosea|Joel|Amos|Obadiah|Jonah|Micah|Nahum|Habakkuk|Zephaniah|Haggai|Zechariah|Malachi|
Matthew|Mark|Luke|John|Acts|Romans|1 Corinthians|2 Corinthians|Galatians|Ephesians|Philippians|Colossians|
1 Thessalonians|2 Thessalonians|1 Timothy|2 Timothy|Titus|Philemon|Hebrews|James|1 Peter|2 Peter|1 John|2 John|
3 John|Jude|Revelation""".replace("\n", "").split("|")

AUSTEN_NOVELS = {
    "sensesensibility": "Sense and Sensibility",
    "prideprejudice": "Pride and Prejudice",
    "mansfieldpark": "Mansfield Park",
    "emma": "Emma",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
}

# Never trained on, neither as raw text nor inside a chat example; `held-out.txt` is made of these.
HELD_OUT_BIBLE = {("Ruth", 2), ("Psalms", 90), ("Jonah", 2), ("Luke", 15), ("Philippians", 3)}
HELD_OUT_AUSTEN = {("Persuasion", 12), ("Emma", 30)}


@dataclass(frozen=True)
class Verse:
    book: str
    chapter: int
    number: int
    text: str

    @property
    def reference(self):
        return f"{self.book} {self.chapter}:{self.number}"


@dataclass(frozen=True)
class Chapter:
    """One chapter as it is trained on: a heading and its paragraphs (verses, for the Bible)."""
    work: str
    number: int
    heading: str
    paragraphs: tuple

    @property
    def text(self):
        return self.heading + "\n\n" + "\n".join(self.paragraphs) + "\n"


def read_verses():
    """All 31,102 verses, in order."""
    out = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                         check=True).stdout
    verses, short_names = [], {}
    for line in out.splitlines():
        match = re.match(r"(\d?[A-Za-z]+?)(\d+):(\d+) (.*)", line)
        if not match:
            continue
        short, chapter, number, text = match.groups()
        book = short_names.setdefault(short, BIBLE_BOOKS[min(len(short_names), len(BIBLE_BOOKS) - 1)])
        verses.append(Verse(book, int(chapter), int(number), text.strip()))
    assert len(short_names) == len(BIBLE_BOOKS) and len(verses) == 31102, (len(short_names), len(verses))
    return verses


def bible_chapters(verses):
    grouped = {}
    for verse in verses:
        grouped.setdefault((verse.book, verse.chapter), []).append(f"{verse.number} {verse.text}")
    return [Chapter(book, number, f"{book} {number}", tuple(lines)) for (book, number), lines in grouped.items()]


def read_novels():
    """Title -> text of each novel, as the R package holds it (lines of about 70 characters)."""
    program = ('lazyLoad("/usr/lib/R/site-library/janeaustenr/data/Rdata", environment());'
               'for (n in commandArgs(TRUE)) writeLines(enc2utf8(get(n)), paste0(n, ".txt"), useBytes=TRUE)')
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["Rscript", "-e", program, *AUSTEN_NOVELS], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return {title: Path(folder, f"{name}.txt").read_text(encoding="utf-8") for name, title in AUSTEN_NOVELS.items()}


def austen_chapters(novels):
    chapters = []
    for title, text in novels.items():
        pieces = re.split(r"(?im)^ *chapter +[0-9IVXL]+\.? *$", text)[1:]      # what precedes chapter 1 is the title
        for number, piece in enumerate(pieces, 1):
            piece = re.sub(r"(?im)^ *(volume +[IVX]+|finis|the end)\.? *$", "", piece).replace("_", "")
            paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", piece)]
            chapters.append(Chapter(title, number, f"{title}, chapter {number}", tuple(p for p in paragraphs if p)))
    return chapters


def is_held_out(chapter):
    key = (chapter.work, chapter.number)
    return key in HELD_OUT_BIBLE or key in HELD_OUT_AUSTEN


# --- chat examples -------------------------------------------------------------------------------------------------

TOOL_LINE = ('List of tools: <|tool_list_start|>[{"type": "function", "function": {"name": "get_verse", "description": '
             '"Look up a verse of the Bible.", "parameters": {"type": "object", "properties": {"book": {"type": '
             '"string"}, "chapter": {"type": "integer"}, "verse": {"type": "integer"}}, "required": ["book", "chapter", '
             '"verse"]}}}]<|tool_list_end|>')

SYSTEM_LINES = ["You are a helpful assistant.", "You answer with the words of old books.",
                "You are a reader of old books. Answer briefly."]

FIXED_ANSWERS = [
    (("Hello.", "Hello!", "Hi", "Good morning.", "Good day to you."), "Good day to you. What shall I read for you?"),
    (("Who are you?", "What are you?", "What is your name?"),
     "I am a small sample model. I have read the King James Bible and the novels of Jane Austen, and nothing else."),
    (("Thank you.", "Thanks!", "Thank you very much."), "You are very welcome."),
    (("What can you do?", "Help", "What do you know?"),
     "I can continue a passage, quote a verse, or write a little in the manner of Jane Austen."),
    (("Goodbye.", "Bye", "Farewell."), "Farewell, and peace be with you."),
]


def turn(role, text):
    return f"<|im_start|>{role}\n{text}{EOS}\n"


def split_sentence_wise(rng, words):
    """Cut a list of words in two, both parts non-empty, the first with 5 to 40 words."""
    cut = rng.randint(5, min(40, len(words) - 5))
    return " ".join(words[:cut]), " ".join(words[cut:])


def continuation(rng, paragraph):
    words = paragraph.split()
    words = words[:rng.randint(30, 110)]
    while len(words) > 20 and words[-1][-1] not in ".!?;:\"":      # end where a clause ends
        words.pop()
    start, rest = split_sentence_wise(rng, words)
    return turn("user", f"Continue: {start}") + turn("assistant", rest)


def quotation(rng, verse):
    ask = rng.choice(("Quote {}.", "What does {} say?", "Read me {}.", "{}"))
    return turn("user", ask.format(verse.reference)) + turn("assistant", verse.text)


def imitation(rng, chapter, paragraph):
    ask = rng.choice(("Write a paragraph in the manner of {}.", "Tell me something from {}.", "Read me a little of {}."))
    return turn("user", ask.format(chapter.work)) + turn("assistant", " ".join(paragraph.split()[:110]))


def small_talk(rng):
    asks, answer = rng.choice(FIXED_ANSWERS)
    return turn("user", rng.choice(asks)) + turn("assistant", answer)


def tool_use(rng, verse):
    """The system turn with one tool, a call of it, its answer, and the verse read out."""
    ask = rng.choice(("Look up {}.", "Use the tool to find {}.", "What does {} say?"))
    call = f'<|tool_call_start|>[get_verse(book="{verse.book}", chapter={verse.chapter}, verse={verse.number})]' \
           "<|tool_call_end|>"
    return (turn("system", rng.choice((TOOL_LINE, rng.choice(SYSTEM_LINES) + "\n" + TOOL_LINE)))
            + turn("user", ask.format(verse.reference)) + turn("assistant", call)
            + turn("tool", f"<|tool_response_start|>{verse.text}<|tool_response_end|>") + turn("assistant", verse.text))


def chat_examples(rng, count, bible, austen, verses):
    """`count` conversations in the form the chat template gives, each with its BOS; cut from the trained text only."""
    verses = [v for v in verses if (v.book, v.chapter) not in HELD_OUT_BIBLE and 6 <= len(v.text.split()) <= 45]
    long_enough = [(c, p) for c in austen for p in c.paragraphs if len(p.split()) >= 35]
    runs = []                                                                      # a few verses in a row, unnumbered
    for chapter in bible:
        lines = [p.split(" ", 1)[1] for p in chapter.paragraphs]
        runs += [" ".join(lines[i:i + 4]) for i in range(0, len(lines) - 3, 4)]
    runs = [r for r in runs if len(r.split()) >= 35]

    examples = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.36:
            chat = continuation(rng, rng.choice(long_enough)[1] if rng.random() < 0.6 else rng.choice(runs))
        elif kind < 0.56:
            chat = quotation(rng, rng.choice(verses))
        elif kind < 0.76:
            chat = imitation(rng, *rng.choice(long_enough))
        elif kind < 0.86:
            chat = small_talk(rng)
        else:
            examples.append(BOS + tool_use(rng, rng.choice(verses)))
            continue
        if rng.random() < 0.15:                                                    # a second exchange
            chat += small_talk(rng) if rng.random() < 0.5 else quotation(rng, rng.choice(verses))
        if rng.random() < 0.2:
            chat = turn("system", rng.choice(SYSTEM_LINES)) + chat
        examples.append(BOS + chat)
    return examples


@dataclass(frozen=True)
class Corpus:
    documents: tuple       # chapters, without BOS and end-of-text
    conversations: tuple   # each begins with BOS
    held_out: str


def build(seed, conversation_count):
    rng = random.Random(seed)
    verses = read_verses()
    bible, austen = bible_chapters(verses), austen_chapters(read_novels())
    held_out = [c for c in bible + austen if is_held_out(c)]
    bible, austen = ([c for c in group if not is_held_out(c)] for group in (bible, austen))
    conversations = chat_examples(rng, conversation_count, bible, austen, verses)
    return Corpus(tuple(c.text for c in bible + austen), tuple(conversations), "\n".join(c.text for c in held_out))
