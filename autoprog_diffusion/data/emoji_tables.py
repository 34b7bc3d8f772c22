"""Tables of the default data: captions of emoji, and three ways of sorting emoji into classes."""

# Unicode names that describe a glyph ("black sun with rays") or a meaning nobody would type, by codepoints.
CAPTIONS = {
    "0023-FE0F-20E3": "keycap hash", "002A-FE0F-20E3": "keycap asterisk", "1F18E": "ab button", "1F199": "up! button",
    "1F201": "japanese here button", "1F202-FE0F": "japanese service charge button",
    "1F21A": "japanese free of charge button", "1F22F": "japanese reserved button",
    "1F232": "japanese prohibited button", "1F233": "japanese vacancy button",
    "1F234": "japanese passing grade button", "1F235": "japanese no vacancy button",
    "1F236": "japanese not free of charge button", "1F237-FE0F": "japanese monthly amount button",
    "1F238": "japanese application button", "1F239": "japanese discount button",
    "1F23A": "japanese open for business button", "1F250": "japanese bargain button",
    "1F251": "japanese acceptable button", "3297-FE0F": "japanese congratulations button",
    "3299-FE0F": "japanese secret button", "1F44A": "oncoming fist", "1F501": "repeat button",
    "1F502": "repeat single button", "1F519": "back arrow", "1F51A": "end arrow", "1F51B": "on! arrow",
    "1F51C": "soon arrow", "1F520": "input latin uppercase", "1F521": "input latin lowercase",
    "1F522": "input numbers", "1F523": "input symbols", "1F524": "input latin letters",
    "1F530": "japanese beginner badge", "1F935": "person in tuxedo", "23E9": "fast forward button",
    "23EA": "rewind button", "23EB": "fast up button", "23EC": "fast down button", "2600-FE0F": "sun",
    "25B6-FE0F": "play button", "25C0-FE0F": "reverse button", "260E-FE0F": "telephone",
    "261D-FE0F": "index pointing up", "263A-FE0F": "relaxed smiling face", "2665-FE0F": "heart suit",
    "2660-FE0F": "spade suit", "2663-FE0F": "club suit", "2666-FE0F": "diamond suit", "267B-FE0F": "recycling symbol",
    "2702-FE0F": "scissors", "2705": "green check mark button", "274E": "cross mark button",
    "2753": "red question mark", "2757": "red exclamation mark", "2764-FE0F": "red heart", "2B50": "star",
    "2B55": "hollow red circle", "1F0CF": "joker playing card", "2734-FE0F": "eight pointed star",
    "2708-FE0F": "airplane", "1F3F4": "black flag", "1F3F3-FE0F": "white flag", "2B06-FE0F": "up arrow",
    "2B07-FE0F": "down arrow", "2B05-FE0F": "left arrow", "27A1-FE0F": "right arrow",
}  # fmt: skip
# Applied in this order to a lower-case Unicode name: (regular expression, replacement).
REWRITES = (
    (r"^(man|woman|person): bald$", r"bald \1"),
    (r"^(man|woman|person): ", r"\1 with "),
    (r"['.]", ""),
    (r"&", " and "),
    (r"[^a-z0-9!\-]+", " "),
    (r"^(?:negative )?(?:squared|circled) (?:latin capital letter )?(\w+)$", r"\1 button"),
    (r"^white (\w+) pointing backhand index$", r"backhand index pointing \1"),
    (r"^(white) (question|exclamation) mark ornament$", r"\1 \2 mark"),
    (r"^heavy (?=\w+ sign$|check mark$|multiplication)", ""),
    (r"^(.* moon|collision|dizzy|anger|sleeping|dash|splashing sweat|hundred points|link|e-mail) symbol$", r"\1"),
    (r"^(fisted hand|waving hand|ok hand|thumbs up|thumbs down|clapping hands|open hands|high voltage) sign$", r"\1"),
)

# Class -> (first codepoint, last codepoint, step): every `step`-th emoji of that range, in Unicode's order.
PRETRAINED = {
    "face": ("1F600", "1F92C", 1),
    "heart": ("1F498", "1F90D", 1),
    "hand": ("1F44B", "1F932", 1),
    "worker": ("1F9D1-200D-2695-FE0F", "1F477-200D-2640-FE0F", 1),
    "mammal": ("1F435", "1F9A1", 1),
    "plant": ("1F490", "1F343", 1),
    "vegetable": ("1F346", "1F344-200D-1F7EB", 1),
    "dish": ("1F35E", "1F95F", 1),
    "building": ("1F6D6", "1F54B", 1),
    "vehicle": ("1F682", "1F6B2", 1),
    "sport": ("26BD", "1F94C", 1),
    "clothing": ("1F453", "1F462", 1),
    "tool": ("1F528", "1FA9C", 1),
    "arrow": ("2B06-FE0F", "1F51D", 1),
    "letter button": ("0023-FE0F-20E3", "1F19A", 1),
    "flag": ("1F1E6-1F1E8", "1F1FF-1F1FC", 3),
}
NEW = {
    "bird": ("1F983", "1F426-200D-1F525", 1),
    "sea creature": ("1F433", "1FABC", 1),
    "insect": ("1F40C", "1FAB1", 1),
    "fruit": ("1F347", "1F965", 1),
    "drink": ("1F37C", "1F9C9", 1),
    "clock": ("1F55B", "1F566", 1),
    "moon and sun": ("1F311", "1F31E", 1),
    "musical instrument": ("1F3B7", "1FA88", 1),
    "zodiac sign": ("2648", "26CE", 1),
    "shape": ("1F534", "1F53B", 1),
}

# Class -> Unicode's subcategories; merged where one has fewer than about 40 emoji.
SUBCATEGORIES = {
    "face": (
        "face-affection", "face-concerned", "face-costume", "face-glasses", "face-hand", "face-hat", "face-negative",
        "face-neutral-skeptical", "face-sleepy", "face-smiling", "face-tongue", "face-unwell", "cat-face",
        "monkey-face",
    ),
    "heart and emotion": ("emotion", "heart"),
    "hand and body": (
        "body-parts", "hand-fingers-closed", "hand-fingers-open", "hand-fingers-partial", "hand-prop",
        "hand-single-finger", "hands",
    ),
    "family": ("family", "person-symbol"),
    "person": ("person", "person-gesture", "person-resting"),
    "role": ("person-fantasy", "person-role"),
    "activity": ("person-activity", "person-sport"),
    "mammal": ("animal-mammal",),
    "animal": ("animal-amphibian", "animal-bird", "animal-bug", "animal-marine", "animal-reptile"),
    "plant": ("food-fruit", "food-vegetable", "plant-flower", "plant-other"),
    "food and drink": ("dishware", "drink", "food-asian", "food-marine", "food-prepared", "food-sweet"),
    "place": (
        "hotel", "place-building", "place-geographic", "place-map", "place-other", "place-religious",
    ),
    "transport": ("transport-air", "transport-ground", "transport-water"),
    "sky and time": ("sky & weather", "time"),
    "game and event": ("arts & crafts", "award-medal", "event", "game", "sport"),
    "clothing": ("clothing",),
    "office": ("book-paper", "mail", "money", "office", "writing"),
    "device": ("computer", "light & video", "music", "musical-instrument", "phone", "sound"),
    "tool": ("household", "lock", "medical", "other-object", "science", "tool"),
    "letter and key": ("alphanum", "keycap"),
    "arrow": ("arrow", "av-symbol"),
    "shape": ("geometric", "other-symbol"),
    "sign": (
        "currency", "gender", "math", "punctuation", "religion", "transport-sign", "warning", "zodiac",
    ),
    "flag": ("country-flag", "flag", "subdivision-flag"),
}  # fmt: skip
