//! The shop as its customers see it: over HTTP, and as the program's exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "a test ends there")]

mod answers;
mod barrier;
mod deaths;
mod following;
mod open;
mod orders;
mod readme;
mod tour;

/// Opens a shop for each of these tests and does in it, one after the other, what is listed: a shop takes longer to open than most of it takes. With commands over HTTP, and over Kafka on the
/// embedded broker; all services in one process, or each in its own. A user belongs to one of them, and who makes the books wrong comes after who needs them right.
macro_rules! tests {
    ($kind:ident: $($test:ident { $($file:ident :: $name:ident)* })*) => {
        mod $kind {
            mod over_http {
                $(#[tokio::test]
                async fn $test() {
                    let shop = &mut crate::open::Shop::open("http", stringify!($kind)).await;
                    $(shop.about(stringify!($name)); crate::$file::$name(shop).await;)*
                })*
            }
            mod over_kafka {
                $(#[tokio::test]
                async fn $test() {
                    let shop = &mut crate::open::Shop::open("kafka", stringify!($kind)).await;
                    $(shop.about(stringify!($name)); crate::$file::$name(shop).await;)*
                })*
            }
        }
    };
}

tests! { one_process:
    a_shop_from_its_first_order_to_the_loss_of_a_database {
        answers::a_key_is_its_users_own
        orders::one_of_a_hundred_buyers_gets_the_last_item_ten_times_over
        orders::an_order_is_placed_once_for_each_key_at_the_shops_price
        orders::a_customer_is_told_once_what_becomes_of_an_order
        orders::an_order_keeps_the_name_and_the_price_of_its_day
        orders::an_order_is_placed_though_the_customer_has_hung_up
        following::who_waits_is_answered_when_the_order_has_ended
        following::each_change_of_an_order_is_told_until_its_end_and_none_twice
        answers::each_service_answers_as_its_document_says
        orders::books_that_do_not_balance_exit_with_an_error
        orders::a_repeat_is_answered_whatever_changed_meanwhile
        answers::each_service_says_how_it_is
        barrier::what_an_order_asked_for_is_found_in_the_inbox_by_its_key_over_http_as_well
    }
    a_shop_that_closes {
        following::who_follows_or_waits_does_not_keep_a_shop_from_closing
    }
}

tests! { processes:
    a_shop_that_loses_each_of_its_services {
        orders::a_customer_is_told_once_what_becomes_of_an_order
        orders::one_of_a_hundred_buyers_gets_the_last_item_ten_times_over
        deaths::a_product_service_that_does_not_answer_means_no_order
        deaths::a_user_service_that_does_not_answer_holds_up_nobody
        deaths::orders_survive_when_each_service_is_killed_while_they_are_under_way
    }
    a_shop_that_is_killed {
        deaths::services_end_with_a_shop_that_is_killed
    }
}

/// What no saga has a part in is the same, whichever way its commands would go.
#[tokio::test]
async fn a_shop_without_orders() {
    let shop = &open::Shop::open("kafka", "one_process").await;
    orders::products_are_listed_by_category_too(shop).await;
    answers::every_no_is_a_problem(shop).await;
    orders::a_key_that_cannot_be_read_orders_nothing(shop).await;
    orders::an_order_that_makes_no_sense_is_refused_and_leaves_nothing(shop).await;
    barrier::the_barrier_makes_repeated_late_and_early_commands_harmless(shop).await;
    barrier::the_barrier_stands_before_payment_and_delivery_as_well(shop).await;
    barrier::a_key_that_names_no_step_is_a_bad_request(shop).await;
}
