"""The word lists of the generators."""

GIRLS = """Mia Lily Anna Zoe Ella Ruby Nora Clara Rosa Ivy Maya Lucy Emma Sara Tina Kate Jane Amy Molly Daisy Alice Bella Chloe
Dora Elsa Fiona Grace Hannah Iris Julia Karen Laura Maria Nina Olive Paula Rita Sophie Tara Una Vera Wendy Holly Hazel Ada
Betty Carol Diana Eva Flora Gina Helen Ida Jenny Kitty Lena Mary Nelly Penny Polly Rachel Sally Susan Violet""".split()
BOYS = """Tom Ben Sam Max Leo Jack Finn Omar Noah Paul Tim Luke Adam Carl Hugo Oscar Peter Dan Billy Theo Alan Bruno Chris David
Eric Frank George Harry Ian James Kevin Louis Martin Nick Oliver Patrick Ralph Simon Toby Victor Walter Will Henry Jim Joe
Arthur Bob Charlie Dennis Edward Felix Gus Isaac Jacob Kurt Mark Nathan Otto Philip Robert Steve Thomas""".split()
NAMES = GIRLS + BOYS
ANIMALS = """rabbit fox bear mouse duck cat dog squirrel hedgehog frog owl turtle pig hen goat lamb pony deer badger otter robin
sparrow beaver mole crow wolf donkey goose swan snail bee parrot monkey lion tiger elephant camel penguin seal whale crab
lizard bat cow horse sheep kitten puppy raccoon peacock toad pigeon""".split()
OBJECTS = """ball kite doll book hat drum boat cup basket lantern bell ribbon scarf coat spoon box key blanket cart whistle coin
shell ring map bucket train puzzle crown flute umbrella lamp clock chair table brush pencil candle mirror ladder hammer
bottle bag button glove pillow wagon violin trumpet telescope letter painting bracelet necklace sled rope shovel broom
bowl plate kettle needle feather stone marble robot teapot jar vase belt watch ticket flag wheel boot shoe sock jacket
sweater cushion notebook camera guitar tent compass""".split()
FOODS = """cake pie soup bread apples berries nuts honey carrots plums pears cookies cheese corn pancakes jam rice beans grapes
cherries peaches muffins noodles potatoes toast pumpkin salad lemons oranges mushrooms""".split()
DISHES = "cake pie soup bread cookies pancakes jam muffins noodles salad dumplings stew".split()
COUNTED = """apples pears plums nuts cookies books coins shells marbles stones pencils balls flowers eggs buttons cards stamps
ribbons beads stickers oranges lemons cherries peaches cakes toys keys kites hats cups""".split()
COLOURS = "red blue green yellow white brown pink purple orange black golden silver grey".split()
PLACES = """garden park forest meadow farm village beach river pond hill barn orchard field market school library yard wood
valley lake mountain bridge harbour station church castle bakery mill cave island street square playground shop""".split()
ROOMS = "kitchen garden bedroom bathroom hall garage office attic cellar library park school market shop".split()
MOODS = "happy glad proud cheerful merry joyful pleased delighted excited".split()
TRAITS = """kind brave curious clever gentle shy cheerful quiet friendly funny careful patient lazy busy honest polite lonely
stubborn playful thoughtful noisy sleepy proud generous helpful dreamy""".split()
SIZES = "little small big tiny tall large".split()
WEATHER = "sunny warm windy rainy cold bright cloudy quiet fine foggy snowy hot stormy misty cool clear".split()
TIMES = "morning afternoon evening day".split()
FAMILY = {"mother": "she", "father": "he", "grandmother": "she", "grandfather": "he", "sister": "she", "brother": "he",
          "aunt": "she", "uncle": "he"}
JOBS = {"baker": "bread", "farmer": "corn", "teacher": "books", "painter": "pictures", "fisherman": "boats",
        "gardener": "flowers", "carpenter": "chairs", "tailor": "coats", "sailor": "ships", "shepherd": "sheep",
        "miller": "flour", "blacksmith": "tools", "musician": "songs", "doctor": "people", "clockmaker": "clocks"}
PRONOUNS = {"he": ("he", "him", "his", "boy", "man"), "she": ("she", "her", "her", "girl", "woman")}
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen").split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
OPPOSITES = [p.split("-") for p in (
    "hot-cold big-small tall-short happy-sad fast-slow old-young day-night up-down left-right open-closed full-empty "
    "hard-soft dark-light wet-dry loud-quiet rich-poor good-bad high-low early-late thick-thin clean-dirty strong-weak "
    "near-far first-last inside-outside true-false win-lose love-hate yes-no begin-end push-pull above-below sweet-sour "
    "brave-afraid wide-narrow buy-sell give-take question-answer summer-winter friend-enemy always-never").split()]
SOUNDS = {"dog": "Woof", "cat": "Meow", "cow": "Moo", "duck": "Quack", "sheep": "Baa", "pig": "Oink", "hen": "Cluck",
          "horse": "Neigh", "frog": "Ribbit", "owl": "Hoot", "bee": "Buzz", "lion": "Roar", "mouse": "Squeak",
          "snake": "Hiss", "crow": "Caw", "donkey": "Hee-haw", "goose": "Honk", "wolf": "Howl", "bird": "Tweet"}
THINGS_COLOURED = {"grass": "green", "the sky": "blue", "snow": "white", "coal": "black", "a banana": "yellow",
                   "a tomato": "red", "a carrot": "orange", "a lemon": "yellow", "milk": "white", "chocolate": "brown",
                   "the sun": "yellow", "blood": "red", "a frog": "green", "an orange": "orange", "a pig": "pink",
                   "a crow": "black", "a strawberry": "red", "the sea": "blue", "a leaf": "green", "honey": "golden",
                   "a cloud": "white", "salt": "white", "a cucumber": "green", "an elephant": "grey", "a swan": "white"}
HOMES = {"bird": "nest", "bee": "hive", "fish": "pond", "bear": "cave", "spider": "web", "dog": "kennel",
         "horse": "stable", "rabbit": "burrow", "king": "castle", "cow": "barn", "lion": "den"}
LEGS = {"dog": 4, "bird": 2, "spider": 8, "cat": 4, "horse": 4, "duck": 2, "fly": 6, "snake": 0, "cow": 4, "hen": 2,
        "ant": 6, "bee": 6, "lion": 4, "crab": 10, "fish": 0, "frog": 4}


def in_words(n):
    """0..999 in English."""
    if n >= 100:
        return ONES[n // 100] + " hundred" + (" and " + in_words(n % 100) if n % 100 else "")
    return ONES[n] if n < 20 else TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")
